"""ONNX Runtime on the CPU, and its providers CUDA and TensorRT."""
