"""What runs on the device: Python's standard library, numpy and the runtimes present there."""
