"""ONNX files in half precision: converting, choosing node types, proving."""
