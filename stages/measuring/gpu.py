"""GPU figures beside the wall's: phases by CUDA events, clocks, heat and throttling by NVML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.heartbeat import Told, unheard
from stages.measuring.nvml import Nvml, connect
from stages.runtimes.identity import ON_GPU
from stages.runtimes.on_gpu import GpuTiming, Phases
from stages.statistics.percentiles import carried

PHASES = 500
"""Inferences whose phases are timed, after those that are timed by the wall: enough for a p99."""

CLOCK_VARIES = 0.05
"""Relative spread of the SM clock above which figures of one run do not belong together."""


@dataclass
class GpuWatch:
    """Notes clock, temperature and throttle reasons at each `look`."""

    nvml: Nvml
    clocks_mhz: list[int] = field(default_factory=list)
    temperatures_c: list[int] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)

    def look(self) -> None:
        clock, temperature = self.nvml.sm_clock_mhz(), self.nvml.temperature_c()
        self.clocks_mhz += [] if clock is None else [clock]
        self.temperatures_c += [] if temperature is None else [temperature]
        self.reasons |= set(self.nvml.throttle_reasons() or ())

    def end(self) -> dict[str, Any]:
        """Figures, and in words each sign that the GPU slowed itself down."""
        clocks = [min(self.clocks_mhz), max(self.clocks_mhz)] if self.clocks_mhz else None
        return {
            "sm_clock_mhz": clocks,
            "temperature_c": [self.temperatures_c[0], self.temperatures_c[-1]]
            if self.temperatures_c
            else None,
            "throttled_by": throttling(clocks, sorted(self.reasons)),
        }


def watch_of(runtime: str) -> GpuWatch | None:
    """A watch on GPU 0 for a runtime whose targets run there; None for others, and where NVML is silent."""
    driver = connect() if runtime in ON_GPU else None
    return GpuWatch(driver) if isinstance(driver, Nvml) else None


def throttling(clocks_mhz: Sequence[int] | None, reasons: Sequence[str]) -> list[str]:
    found = [f"the GPU reports: {reason}" for reason in reasons]
    if clocks_mhz and clocks_mhz[1] - clocks_mhz[0] > CLOCK_VARIES * clocks_mhz[1]:
        found.append(
            f"the GPU's clock moved between {clocks_mhz[0]} and {clocks_mhz[1]} MHz "
            "(an operator may lock it: nvidia-smi --lock-gpu-clocks=MHZ)"
        )
    return found


def phases(timing: GpuTiming, timed: Told = unheard) -> dict[str, Any]:
    """The scorecard's `gpu`: `PHASES` inferences by CUDA events. timed: called with their number so far."""
    taken = []
    for number in range(PHASES):
        taken.append(timing.phases())
        timed(number + 1, PHASES)
    return summarise(taken)


def summarise(taken: Sequence[Phases]) -> dict[str, Any]:
    """p50 and p99 of each phase and p50 of their sum, in milliseconds by the GPU's clock."""
    found: dict[str, Any] = {"clock": "CUDA events", "n": len(taken)}
    columns = {
        name: np.sort([getattr(one, name) for one in taken])
        for name in ("to_gpu_ms", "inference_ms", "from_gpu_ms")
    }
    for name, ordered in columns.items():
        for percent in (50, 99):
            value = carried(ordered, percent)
            key = name.replace("_ms", f"_p{percent}_ms")
            found[key] = None if value is None else round(value, 6)
    sums = np.sort([one.to_gpu_ms + one.inference_ms + one.from_gpu_ms for one in taken])
    total = carried(sums, 50)
    return {**found, "total_p50_ms": None if total is None else round(total, 6)}
