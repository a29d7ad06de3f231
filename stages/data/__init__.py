"""Data sets: real images with labels, read once, held as uint8, split without leakage."""
