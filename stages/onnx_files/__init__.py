"""ONNX files: making them from PyTorch, proving them, quantizing them, and reading what they say."""
