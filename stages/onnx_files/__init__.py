"""ONNX files: making them from PyTorch, proving them, quantising them, and reading what they say."""
