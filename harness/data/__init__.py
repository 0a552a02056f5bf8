"""Images: read, decoded fully once, verified, and kept as memory-mapped uint8 with a fingerprint."""
