"""What a program can do with the harness; the command line is built on it, and ``harness`` exports its public names."""
