"""The program of a bundle, which runs its models on a device, and the limits of its self-test."""
