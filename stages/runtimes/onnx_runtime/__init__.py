"""The runtimes of ONNX Runtime: on the CPU, and on NVIDIA GPUs by two providers.

Read in this order: `cpu` (the interface), `session` (loaded and run), then `gpu` (what both providers share),
`cuda`, `tensorrt`, `gpu_session`, and `gpu_trial` (a provider tried in a process of its own).
"""
