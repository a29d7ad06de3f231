"""TensorRT and TensorRT for RTX: building engines, running them, their side files."""
