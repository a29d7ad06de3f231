"""The runtime ncnn.

Read in this order: `runtime` (the interface), `convert` (from ONNX by pnnx), `session` (loaded and run),
`trial` (tried in a process of its own).
"""
