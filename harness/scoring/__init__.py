"""Scores of a generator: protocol (what a score means), reference (the real images), torch-fidelity."""
