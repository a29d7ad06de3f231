"""The GPU's own figures: phases of an inference by CUDA events; clocks, temperature, throttling by NVML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.heartbeat import ProgressCallback, ignore_progress
from stages.measuring.nvml import Nvml, connect
from stages.runtimes.identity import ON_GPU
from stages.runtimes.on_gpu import GpuTiming, Phases
from stages.statistics.percentiles import supported_percentile

PHASES = 500
"""Inferences whose phases are timed, after those timed by the wall clock: enough for a p99."""

MAX_CLOCK_SPREAD = 0.05
"""Relative spread of the SM clock above which the figures of a measurement are not comparable."""


@dataclass
class GpuWatch:
    """A record of the GPU's clock, temperature and throttle reasons at each `look`.

    Attributes:
        nvml: The driver.
        clocks_mhz: SM clock at each look.
        temperatures_c: Temperature at each look, degrees Celsius.
        reasons: All throttle reasons that were active at a look.
    """

    nvml: Nvml
    clocks_mhz: list[int] = field(default_factory=list)
    temperatures_c: list[int] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)

    def look(self) -> None:
        """Record the state now."""
        clock, temperature = self.nvml.sm_clock_mhz(), self.nvml.temperature_c()
        self.clocks_mhz += [] if clock is None else [clock]
        self.temperatures_c += [] if temperature is None else [temperature]
        self.reasons |= set(self.nvml.throttle_reasons() or ())

    def end(self) -> dict[str, Any]:
        """Return the figures, and each sign that the GPU slowed itself down in words."""
        clocks = [min(self.clocks_mhz), max(self.clocks_mhz)] if self.clocks_mhz else None
        return {
            "sm_clock_mhz": clocks,
            "temperature_c": [self.temperatures_c[0], self.temperatures_c[-1]]
            if self.temperatures_c
            else None,
            "throttled_by": throttle_signs(clocks, sorted(self.reasons)),
        }


def gpu_watch(runtime: str) -> GpuWatch | None:
    """Return a watch on GPU 0 for a runtime that uses it; None for other runtimes and without NVML."""
    driver = connect() if runtime in ON_GPU else None
    return GpuWatch(driver) if isinstance(driver, Nvml) else None


def throttle_signs(clocks_mhz: Sequence[int] | None, reasons: Sequence[str]) -> list[str]:
    """Return each sign that the GPU slowed itself down, in words.

    Args:
        clocks_mhz: Lowest and highest SM clock; None if unknown.
        reasons: What NVML reported.
    """
    signs = [f"the GPU reports: {reason}" for reason in reasons]
    if clocks_mhz and clocks_mhz[1] - clocks_mhz[0] > MAX_CLOCK_SPREAD * clocks_mhz[1]:
        signs.append(
            f"the GPU's clock moved between {clocks_mhz[0]} and {clocks_mhz[1]} MHz "
            "(an operator may lock it: nvidia-smi --lock-gpu-clocks=MHZ)"
        )
    return signs


def phases(timing: GpuTiming, timed: ProgressCallback = ignore_progress) -> dict[str, Any]:
    """Time `PHASES` inferences by CUDA events, and return the scorecard's `gpu`.

    Args:
        timing: The call to time.
        timed: Called with the inferences done and planned.
    """
    samples = []
    for number in range(PHASES):
        samples.append(timing.phases())
        timed(number + 1, PHASES)
    return summarise(samples)


def summarise(samples: Sequence[Phases]) -> dict[str, Any]:
    """Return p50 and p99 of each phase and p50 of their sum, in milliseconds by the GPU's clock."""
    entry: dict[str, Any] = {"clock": "CUDA events", "n": len(samples)}
    columns = {
        name: np.sort([getattr(phases, name) for phases in samples])
        for name in ("to_gpu_ms", "inference_ms", "from_gpu_ms")
    }
    for name, ordered in columns.items():
        for percent in (50, 99):
            value = supported_percentile(ordered, percent)
            key = name.replace("_ms", f"_p{percent}_ms")
            entry[key] = None if value is None else round(value, 6)
    sums = np.sort([phases.to_gpu_ms + phases.inference_ms + phases.from_gpu_ms for phases in samples])
    total = supported_percentile(sums, 50)
    return {**entry, "total_p50_ms": None if total is None else round(total, 6)}
