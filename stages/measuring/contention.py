"""The state of the machine while latencies are sampled: other work on the cores, clocks, temperature.

It is read from /proc and /sys, between samples and never inside one. Values that the machine does not report
are None and set no flag. `root` is the folder that contains `proc` and `sys`: `/`, or a copy in tests.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.measuring.gpu import GpuWatch

MAX_WALL_OVER_CPU = 1.1
"""Wall time over CPU time of a one-thread run; above it, something else used the core."""

MAX_SWITCHES_PER_S = 20.0
"""Involuntary context switches per second; above it, others compete for the core (a quiet core has a few)."""

NEGLIGIBLE_SHARE = 0.01
"""Share of the cores' time that others must take before involuntary switches count. A runtime's own threads
that hand an image to each other on one core (OpenVINO's do) cause involuntary switches too."""

MAX_OTHERS_SHARE, MAX_STEAL_SHARE = 0.1, 0.01
"""Shares of the cores' time that other processes, and other guests of the host, may take."""

MIN_CLOCK_SHARE = 0.9
"""A clock below this share of the highest one in the same measurement is throttled."""

MIN_SECONDS = 0.5
"""Ticks of /proc/stat last 10 ms: shares over a shorter time are too coarse."""


@dataclass(frozen=True)
class Ticks:
    """CPU time of the watched cores since boot.

    Attributes:
        busy_s: Seconds in which they ran any process or interrupt.
        steal_s: Seconds in which the host ran other guests on them.
    """

    busy_s: float
    steal_s: float


@dataclass(frozen=True)
class Usage:
    """What the measured processes used, if they are not the watching process.

    Attributes:
        cpu_s: CPU time in seconds.
        switches: Involuntary context switches.
    """

    cpu_s: float
    switches: int


@dataclass
class Watch:
    """A record of the machine's state from `begin` over each `look` to `end`.

    Attributes:
        cores: The logical CPUs that the measured process runs on.
        threads: CPU threads of the measured process.
        root: The folder that contains `proc` and `sys`.
        gpu: The GPU's state, for a target on a GPU.
        clocks_mhz: The cores' lowest clock at each look.
    """

    cores: tuple[int, ...]
    threads: int
    root: Path = Path("/")
    gpu: GpuWatch | None = None
    clocks_mhz: list[float] = field(default_factory=list)
    _began: dict[str, Any] = field(default_factory=dict)

    def begin(self) -> None:
        """Start a new record."""
        self.clocks_mhz.clear()
        self._began = self._state()
        self.look()

    def look(self) -> None:
        """Record the cores' lowest clock. Call it between samples only: it takes some microseconds."""
        clock = core_clock_mhz(self.cores, self.root)
        if clock is not None:
            self.clocks_mhz.append(clock)
        if self.gpu:
            self.gpu.look()

    def end(self, wall_over_cpu: float | None, used: Usage | None = None) -> dict[str, Any]:
        """End the record, and return its figures and flags: `health` of a scorecard's entry.

        Args:
            wall_over_cpu: Total wall time over total CPU time of the samples; None if unknown.
            used: What the measured processes used since `begin`; None: this process was measured.
        """
        self.look()
        before, after = self._began, self._state()
        seconds = max(1e-9, after["time_s"] - before["time_s"])
        used = used or Usage(after["cpu_s"] - before["cpu_s"], after["switches"] - before["switches"])
        others = steal = None
        if before["ticks"] and after["ticks"] and seconds >= MIN_SECONDS:
            room = seconds * max(1, len(self.cores))
            busy = after["ticks"].busy_s - before["ticks"].busy_s
            others = max(0.0, busy - used.cpu_s) / room
            steal = (after["ticks"].steal_s - before["ticks"].steal_s) / room
        events = _difference(before["throttle_events"], after["throttle_events"])
        clocks = (min(self.clocks_mhz), max(self.clocks_mhz)) if self.clocks_mhz else None
        figures = {
            "wall_over_cpu": wall_over_cpu,
            "involuntary_switches_per_s": round(used.switches / seconds, 2),
            "others_share": None if others is None else round(others, 4),
            "steal_share": None if steal is None else round(steal, 4),
            "load_average": [before["load"], after["load"]],
            "clock_mhz": [round(value) for value in clocks] if clocks else None,
            "temperature_c": [before["temperature_c"], after["temperature_c"]],
            "throttle_events": events,
        }
        contended, throttled = contention_signs(figures, self.threads), throttle_signs(figures)
        if self.gpu:
            figures["gpu"] = self.gpu.end()
            throttled += figures["gpu"]["throttled_by"]
        flags = ["contended"] * bool(contended) + ["throttled"] * bool(throttled)
        return {**figures, "contended_by": contended, "throttled_by": throttled, "flags": flags}

    def _state(self) -> dict[str, Any]:
        return {
            "time_s": time.perf_counter(),
            "cpu_s": time.process_time(),
            "switches": resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
            "load": _load_average(),
            "ticks": core_ticks(self.cores, self.root),
            "throttle_events": throttle_events(self.cores, self.root),
            "temperature_c": temperature_c(self.root),
        }


def merge_health(healths: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the worst of each figure over several parts of one measurement, and each sign once.

    Args:
        healths: What `Watch.end` returned for each part, in order.
    """

    def values(name: str) -> list[Any]:
        return [health[name] for health in healths if health[name] is not None]

    def distinct_signs(name: str) -> list[str]:
        return list(dict.fromkeys(sign for health in healths for sign in health[name]))

    worst = ("wall_over_cpu", "involuntary_switches_per_s", "others_share", "steal_share", "throttle_events")
    clocks = [clock for pair in values("clock_mhz") for clock in pair]
    return {
        **{name: max(values(name), default=None) for name in worst},
        **{name: [healths[0][name][0], healths[-1][name][1]] for name in ("load_average", "temperature_c")},
        "clock_mhz": [min(clocks), max(clocks)] if clocks else None,
        "contended_by": distinct_signs("contended_by"),
        "throttled_by": distinct_signs("throttled_by"),
        "flags": distinct_signs("flags"),
        **({"gpu": [health["gpu"] for health in healths]} if "gpu" in healths[0] else {}),
    }


def contention_signs(figures: dict[str, Any], threads: int) -> list[str]:
    """Return each sign that something else used the cores, in words.

    Args:
        figures: Of `Watch.end`.
        threads: CPU threads of the measured process: with several, wall over CPU time is no sign.
    """
    signs = []
    ratio = figures["wall_over_cpu"]
    if threads == 1 and ratio is not None and ratio > MAX_WALL_OVER_CPU:
        signs.append(f"wall time is {ratio:.2f} times CPU time")
    others = figures["others_share"]
    switched = figures["involuntary_switches_per_s"] > MAX_SWITCHES_PER_S
    if switched and (others is None or others > NEGLIGIBLE_SHARE):
        signs.append(f"{figures['involuntary_switches_per_s']:.0f} involuntary context switches a second")
    if (others or 0.0) > MAX_OTHERS_SHARE:
        signs.append(f"other processes took {others:.0%} of its cores")
    if (figures["steal_share"] or 0.0) > MAX_STEAL_SHARE:
        signs.append(f"the host took {figures['steal_share']:.0%} of its cores (steal)")
    return signs


def throttle_signs(figures: dict[str, Any]) -> list[str]:
    """Return each sign that the processor slowed itself down, in words."""
    signs = []
    if figures["throttle_events"]:
        signs.append(f"the processor counted {figures['throttle_events']} thermal throttle events")
    if figures["clock_mhz"]:
        low, high = figures["clock_mhz"]
        if low < MIN_CLOCK_SHARE * high:
            signs.append(f"the clock fell from {high} to {low} MHz")
    return signs


def core_ticks(cores: Iterable[int], root: Path = Path("/")) -> Ticks | None:
    """Return the sum of /proc/stat's times over these cores; None where it has none."""
    hertz = os.sysconf("SC_CLK_TCK")
    names = {f"cpu{core}" for core in cores}
    rows = [line.split() for line in (read(root / "proc/stat") or "").splitlines()]
    counted = [[int(part) for part in row[1:9]] for row in rows if row and row[0] in names]
    if not counted or min(len(row) for row in counted) < 8:
        return None
    # user nice system idle iowait irq softirq steal
    busy = sum(row[0] + row[1] + row[2] + row[5] + row[6] for row in counted)
    return Ticks(busy / hertz, sum(row[7] for row in counted) / hertz)


def core_clock_mhz(cores: Iterable[int], root: Path = Path("/")) -> float | None:
    """Return the lowest clock of these cores now, by cpufreq, otherwise by /proc/cpuinfo."""
    clocks = []
    for core in cores:
        text = read(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq")
        if text and text.isdigit():
            clocks.append(int(text) / 1000.0)
    if clocks:
        return min(clocks)
    watched = set(cores)
    current = -1
    for line in (read(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "processor" and value.strip().isdigit():
            current = int(value)
        elif name.strip() == "cpu MHz" and current in watched:
            clocks.append(float(value))
    return min(clocks) if clocks else None


def throttle_events(cores: Iterable[int], root: Path = Path("/")) -> int | None:
    """Return how often these cores' processor has throttled for heat since boot."""
    texts = [
        read(root / f"sys/devices/system/cpu/cpu{core}/thermal_throttle/{kind}_throttle_count")
        for core in cores
        for kind in ("core", "package")
    ]
    counts = [int(text) for text in texts if text and text.isdigit()]
    return sum(counts) if counts else None


def temperature_c(root: Path = Path("/")) -> float | None:
    """Return the temperature of the hottest thermal zone, in degrees Celsius."""
    zones = []
    for file in (root / "sys/class/thermal").glob("thermal_zone*/temp"):
        text = read(file)
        if text and re.fullmatch(r"-?\d+", text):
            zones.append(int(text) / 1000.0)
    return round(max(zones), 1) if zones else None


def read(file: Path) -> str | None:
    """Return the file's text, stripped; None if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _load_average() -> float | None:
    with contextlib.suppress(OSError):
        return round(os.getloadavg()[0], 2)
    return None
