"""Measuring: latency with its intervals, accuracy of the built file, memory, energy, the machine's state.

Reading order: `settings`; `launch` (start a worker for one target) and `worker` (measure it); `latency`,
`open_loop`, `energy` and `gpu` (the figures); `contention`, `pinning` and `nvml` (the machine); `turns`,
`interleave`, `comparisons` and `reference_bundle` (which of two targets is faster); `scorecard` (the rows).
"""
