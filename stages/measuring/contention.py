"""What else went on while latencies were taken: other work on the cores, clocks, heat.

Read from /proc and /sys, between samples and never inside one. What a machine does not tell is None,
and no flag is made of it. `root` is where those trees lie: `/` but for a copy of them.
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

CONTENDED = 1.1
"""Wall time over CPU time of a one-thread run above which something else used the core."""

SWITCHES_PER_S = 20.0
"""Involuntary context switches a second: above it, others want the core (a quiet core has a few)."""

NEXT_TO_NONE = 0.01
"""A share of the cores' time below which others did not take what was switched away: a runtime's own
threads that hand an image to each other on one core (OpenVINO's do) count as involuntary switches too."""

OTHERS_SHARE, STEAL_SHARE = 0.1, 0.01
"""Shares of the cores' time that other processes, or other guests of the host, may take."""

FELL_TO = 0.9
"""A clock that falls below this share of the highest one seen meanwhile is throttled."""

SHORTEST_S = 0.5
"""Ticks of /proc/stat last 10 ms: shares over less than this say nothing."""


@dataclass(frozen=True)
class Ticks:
    """Seconds since boot that the watched cores were busy (for whomever), and stolen from."""

    busy_s: float
    steal_s: float


@dataclass(frozen=True)
class Usage:
    """What measured processes used that are not the watching one: CPU seconds, involuntary switches."""

    cpu_s: float
    switches: int


@dataclass
class Watch:
    """Notes the state at `begin`, at each `look` and at `end`; `end` returns figures and flags.

    cores: the logical CPUs that the measured process runs on. gpu: for a target on a GPU.
    """

    cores: tuple[int, ...]
    threads: int
    root: Path = Path("/")
    gpu: GpuWatch | None = None
    clocks_mhz: list[float] = field(default_factory=list)
    _began: dict[str, Any] = field(default_factory=dict)

    def begin(self) -> None:
        self.clocks_mhz.clear()
        self._began = self._state()
        self.look()

    def look(self) -> None:
        """Notes the cores' lowest clock now; some microseconds, so between samples only."""
        clock = core_clock_mhz(self.cores, self.root)
        if clock is not None:
            self.clocks_mhz.append(clock)
        if self.gpu:
            self.gpu.look()

    def end(self, wall_over_cpu: float | None, used: Usage | None = None) -> dict[str, Any]:
        """wall_over_cpu: of the samples, for a one-thread run; else None. used: since `begin`, by other
        processes that were measured; None: this process was."""
        self.look()
        before, after = self._began, self._state()
        seconds = max(1e-9, after["time_s"] - before["time_s"])
        used = used or Usage(after["cpu_s"] - before["cpu_s"], after["switches"] - before["switches"])
        others = steal = None
        if before["ticks"] and after["ticks"] and seconds >= SHORTEST_S:
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
        contended, throttled = contention(figures, self.threads), throttling(figures)
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


def merged(healths: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of several stretches of one measurement the worst of each figure, and every sign of doubt once."""

    def every(name: str) -> list[Any]:
        return [one[name] for one in healths if one[name] is not None]

    def told_once(name: str) -> list[str]:
        return list(dict.fromkeys(sign for one in healths for sign in one[name]))

    worst = ("wall_over_cpu", "involuntary_switches_per_s", "others_share", "steal_share", "throttle_events")
    clocks = [clock for pair in every("clock_mhz") for clock in pair]
    return {
        **{name: max(every(name), default=None) for name in worst},
        **{name: [healths[0][name][0], healths[-1][name][1]] for name in ("load_average", "temperature_c")},
        "clock_mhz": [min(clocks), max(clocks)] if clocks else None,
        "contended_by": told_once("contended_by"),
        "throttled_by": told_once("throttled_by"),
        "flags": told_once("flags"),
        **({"gpu": [one["gpu"] for one in healths]} if "gpu" in healths[0] else {}),
    }


def contention(figures: dict[str, Any], threads: int) -> list[str]:
    """Each sign that something else used the cores, in words."""
    found = []
    ratio = figures["wall_over_cpu"]
    if threads == 1 and ratio is not None and ratio > CONTENDED:
        found.append(f"wall time is {ratio:.2f} times CPU time")
    others = figures["others_share"]
    if figures["involuntary_switches_per_s"] > SWITCHES_PER_S and (others is None or others > NEXT_TO_NONE):
        found.append(f"{figures['involuntary_switches_per_s']:.0f} involuntary context switches a second")
    if (others or 0.0) > OTHERS_SHARE:
        found.append(f"other processes took {others:.0%} of its cores")
    if (figures["steal_share"] or 0.0) > STEAL_SHARE:
        found.append(f"the host took {figures['steal_share']:.0%} of its cores (steal)")
    return found


def throttling(figures: dict[str, Any]) -> list[str]:
    """Each sign that the processor slowed itself down, in words."""
    found = []
    if figures["throttle_events"]:
        found.append(f"the processor counted {figures['throttle_events']} thermal throttle events")
    if figures["clock_mhz"]:
        low, high = figures["clock_mhz"]
        if low < FELL_TO * high:
            found.append(f"the clock fell from {high} to {low} MHz")
    return found


def core_ticks(cores: Iterable[int], root: Path = Path("/")) -> Ticks | None:
    """What /proc/stat counts for these cores together; None where it does not."""
    hertz = os.sysconf("SC_CLK_TCK")
    wanted = {f"cpu{core}" for core in cores}
    rows = [line.split() for line in (read(root / "proc/stat") or "").splitlines()]
    counted = [[int(part) for part in row[1:9]] for row in rows if row and row[0] in wanted]
    if not counted or min(len(row) for row in counted) < 8:
        return None
    # user nice system idle iowait irq softirq steal
    busy = sum(row[0] + row[1] + row[2] + row[5] + row[6] for row in counted)
    return Ticks(busy / hertz, sum(row[7] for row in counted) / hertz)


def core_clock_mhz(cores: Iterable[int], root: Path = Path("/")) -> float | None:
    """The lowest clock of these cores now, by cpufreq, else by /proc/cpuinfo."""
    found = []
    for core in cores:
        text = read(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq")
        if text and text.isdigit():
            found.append(int(text) / 1000.0)
    if found:
        return min(found)
    wanted = set(cores)
    current = -1
    for line in (read(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "processor" and value.strip().isdigit():
            current = int(value)
        elif name.strip() == "cpu MHz" and current in wanted:
            found.append(float(value))
    return min(found) if found else None


def throttle_events(cores: Iterable[int], root: Path = Path("/")) -> int | None:
    """How often these cores' processor has throttled for heat since boot."""
    texts = [
        read(root / f"sys/devices/system/cpu/cpu{core}/thermal_throttle/{kind}_throttle_count")
        for core in cores
        for kind in ("core", "package")
    ]
    counts = [int(text) for text in texts if text and text.isdigit()]
    return sum(counts) if counts else None


def temperature_c(root: Path = Path("/")) -> float | None:
    """The hottest thermal zone, in degrees Celsius."""
    found = []
    for file in (root / "sys/class/thermal").glob("thermal_zone*/temp"):
        text = read(file)
        if text and re.fullmatch(r"-?\d+", text):
            found.append(int(text) / 1000.0)
    return round(max(found), 1) if found else None


def read(file: Path) -> str | None:
    """The file's text without its ends; None if it cannot be read."""
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
