"""The energy of an inference, gross and less the idle power, from the machine's own counter or monitor.

    GPU targets     NVML's energy counter (Volta and later); on a Tegra board its INA power monitor
    CPU targets     on a Tegra board its INA power monitor; else RAPL's package counters (powercap)

RAPL counts whole processor packages, NVML the whole GPU board, INA the rail that the source names. Other work
on them counts too: so the idle baseline is taken just before, and a contended measurement's energy is
doubtful. Where there is no source, the figures are null and the reason is reported.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.heartbeat import ProgressCallback, ignore_progress
from stages.measuring.contention import read
from stages.measuring.nvml import LIBRARY, connect

POLL_S = 0.05
"""Interval at which a power monitor is read. NVML's and RAPL's counters are read at the two ends only."""

MAX_SLEEP_S = 5.0
"""Longest sleep at a time while the idle baseline is taken."""

MIN_SECONDS = 0.5
"""NVML's counter is updated about every 0.1 s: energy over a shorter time is not reported."""

INA_RAILS = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0")
"""Rails that supply a whole Tegra board, by the boards' own labels."""


@dataclass
class Counter:
    """A source that counts joules itself.

    Attributes:
        name: For the scorecard.
        joules: Reads the counters, one value per package.
        wraps_j: Joules after which each counter wraps to 0; empty if unknown.
    """

    name: str
    joules: Callable[[], list[float]]
    wraps_j: tuple[float, ...] = ()
    _began: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Read the counters at the start."""
        self._began = self.joules()

    def stop(self) -> float:
        """Joules since `start`."""
        total = 0.0
        for index, (before, after) in enumerate(zip(self._began, self.joules(), strict=True)):
            wraps = self.wraps_j[index] if after < before and self.wraps_j else 0.0
            total += after - before + wraps
        return total


@dataclass
class PowerMeter:
    """A source that reports watts, integrated over time by a thread that reads it every `POLL_S`.

    Attributes:
        name: For the scorecard.
        watts: Reads the power.
    """

    name: str
    watts: Callable[[], float]
    _joules: float = 0.0
    _done: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._joules, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._sum_up, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Joules since `start`."""
        assert self._thread is not None
        self._done.set()
        self._thread.join()
        return self._joules

    def _sum_up(self) -> None:
        last_s, last_w = time.perf_counter(), self.watts()
        ended = False
        while not ended:
            ended = self._done.wait(POLL_S)
            now_s, now_w = time.perf_counter(), self.watts()
            self._joules += (now_s - last_s) * (now_w + last_w) / 2.0
            last_s, last_w = now_s, now_w


Source = Counter | PowerMeter


def find_source(on_gpu: bool, root: Path = Path("/"), nvml: str = LIBRARY) -> Source | str:
    """Return the energy source of this machine for a target, or the reason why there is none.

    Args:
        on_gpu: Whether the target runs on the GPU.
        root: The folder that contains `sys`.
        nvml: File name of the NVIDIA driver's library.
    """
    board = _tegra(root)
    if isinstance(board, PowerMeter):
        return board
    if on_gpu:
        return _nvml(nvml)
    return _rapl(root)


def idle_watts(source: Source, seconds: float, resting: ProgressCallback = ignore_progress) -> float:
    """Return the power in watts while this process sleeps.

    Args:
        source: The energy source.
        seconds: How long to sleep.
        resting: Called with the seconds done and planned.
    """
    source.start()
    began = time.perf_counter()
    while (left_s := seconds - (time.perf_counter() - began)) > 0.0:
        time.sleep(min(left_s, MAX_SLEEP_S))
        resting(seconds - left_s, seconds)
    return source.stop() / (time.perf_counter() - began)


def figures(
    source: Source | str, *, joules: float, idle_w: float, seconds: float, inferences: int, batch: int
) -> dict[str, Any]:
    """Return the scorecard's `energy`: per image, gross and with the idle baseline subtracted.

    `why_not` is null where energy was measured; otherwise it has the reason and the figures are null.

    Args:
        source: Of `find_source`.
        joules: Energy of all inferences.
        idle_w: Idle power in watts.
        seconds: How long the inferences took.
        inferences: How many there were.
        batch: Images of an inference.
    """
    entry: dict[str, Any] = {
        "source": None if isinstance(source, str) else source.name,
        "joules_per_image": None,
        "joules_per_image_over_idle": None,
        "watts": None,
        "idle_watts": None,
        "why_not": source if isinstance(source, str) else None,
    }
    if isinstance(source, str):
        return entry
    if seconds < MIN_SECONDS:
        why_not = f"{seconds:.2f} s are too short for the counter; set measure.duration_s higher"
        return {**entry, "why_not": why_not}
    images = inferences * batch
    return {
        **entry,
        "joules_per_image": _four_digits(joules / images),
        "joules_per_image_over_idle": _four_digits((joules - idle_w * seconds) / images),
        "watts": round(joules / seconds, 3),
        "idle_watts": round(idle_w, 3),
    }


def _rapl(root: Path) -> Source | str:
    zones = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
    packages = [zone for zone in zones if (read(zone / "name") or "").startswith("package")]
    if not packages:
        return "this machine has no RAPL energy counters (/sys/class/powercap); few virtual machines do"
    if any(read(zone / "energy_uj") is None for zone in packages):
        return "only root can read RAPL's counters; run as root: chmod a+r /sys/class/powercap/*/energy_uj"

    def joules() -> list[float]:
        return [int(read(zone / "energy_uj") or 0) * 1e-6 for zone in packages]

    wraps = tuple(int(read(zone / "max_energy_range_uj") or 0) * 1e-6 for zone in packages)
    return Counter(f"RAPL, {len(packages)} package{'s' * (len(packages) != 1)}", joules, wraps)


def _tegra(root: Path) -> PowerMeter | str:
    """Return the INA3221 monitor's rail of the whole board, which the kernel lists under hwmon."""
    for label in sorted((root / "sys/class/hwmon").glob("hwmon*/in*_label")):
        rail = read(label)
        if rail not in INA_RAILS:
            continue
        channel = label.name.removeprefix("in").removesuffix("_label")
        volts, amperes = label.parent / f"in{channel}_input", label.parent / f"curr{channel}_input"
        if read(volts) is None or read(amperes) is None:
            return f"the power monitor of {rail} cannot be read"

        def watts(volts: Path = volts, amperes: Path = amperes) -> float:
            return int(read(volts) or 0) * int(read(amperes) or 0) * 1e-6  # millivolts, milliamperes

        return PowerMeter(f"INA power monitor, {rail}", watts)
    return "no INA power monitor"


def _nvml(library: str) -> Source | str:
    """Return the energy counter of GPU 0, by the driver's own library."""
    gpu = connect(library)
    if isinstance(gpu, str):
        return gpu
    if gpu.energy_j() is None:
        return "this GPU counts no energy (NVML: not supported; Volta and later do)"
    return Counter("NVML, the GPU's energy counter", lambda: [gpu.energy_j() or 0.0])


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")
