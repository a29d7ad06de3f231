"""Measuring: latency with its uncertainty, accuracy of the very file, memory, the machine."""
