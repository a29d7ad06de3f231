"""The runtimes TensorRT and TensorRT for RTX.

Read in this order: `classic` and `rtx` (the interface), `family` (what both share), `process` (starts the
builder), `build` (the builder, a process of its own), `sidecar` (the facts beside an engine), `loaded_engine`
and `session` (the engine loaded and run). `options`, `faults`, `phases`, `timings` and `inspector` are the
builder's parts.
"""
