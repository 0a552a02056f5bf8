"""What the verbs do, free of printing and of argument parsing."""
