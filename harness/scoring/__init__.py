"""Scores of a generator: what they mean (protocol), what they compare with (reference), and torch-fidelity itself."""
