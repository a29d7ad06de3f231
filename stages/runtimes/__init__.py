"""Runtimes: they build and execute targets. One interface, one module a runtime.

Read in this order: `base` (the interface), `registry` (runtimes by name), a runtime such as
`onnx_runtime/cpu` and its `session`, `images` (how a file is fed), `parity` (the proof of a built target),
`shipping` (its files) and `identity` (its key). GPU sessions add `on_gpu` and `gpu_binding`; `probe` and
`trial` ask in child processes.
"""
