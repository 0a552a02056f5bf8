"""One training on disk: its folder, checkpoints, curve and share."""
