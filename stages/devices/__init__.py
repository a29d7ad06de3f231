"""One's own devices: what a profile may say of them, and the program that works there."""
