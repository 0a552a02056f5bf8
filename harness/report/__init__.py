"""The Markdown report: a pure function of the study's record and of the files that it names."""
