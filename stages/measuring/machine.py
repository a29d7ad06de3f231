"""What this machine is. Light: standard library alone.

`measure_machine` is part of the key of what was measured here: the kind of machine, not its name,
so that equal boards of a fleet share their results.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "bf16",
    "asimddp",
    "i8mm",
    "sve",
)
"""CPU features that decide how fast float and INT8 networks run."""


def measure_machine(settings: Any = None) -> dict[str, str]:
    """Names what of this machine a latency depends on, for the artefact's key."""
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "cores": str(usable_cores()),
        "memory_gib": str(round(memory_bytes() / 2**30)),
        "gpu": ", ".join(gpu_names()) or "none",
    }


def describe() -> dict[str, Any]:
    """The machine as the scorecard states it: the key's facts and the state it was found in."""
    return {
        **measure_machine(),
        "cpu_flags": cpu_flags(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "max_mhz": _mhz("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def load_average() -> float | None:
    """Runnable processes, averaged over the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def cpu_model() -> str:
    """The processor's name; on boards without one in /proc/cpuinfo, the board's."""
    match = re.search(
        r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", _read("/proc/cpuinfo") or "", re.MULTILINE
    )
    if match:
        return match.group(1).strip()
    board = (_read("/proc/device-tree/model") or "").strip("\0 \n")
    return board or platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Those of `FLAGS` that this processor has."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    present = set(found.group(1).split()) if found else set()
    return [flag for flag in FLAGS if flag in present]


def computes_bf16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (x86's AVX512 or AMX, Arm's BF16)."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(cpu_flags())


def usable_cores() -> int:
    """Cores this process may use: its affinity, cut by a container's CPU quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    quota = (_read("/sys/fs/cgroup/cpu.max") or "").split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return 0


def gpu_names() -> list[str]:
    """NVIDIA GPUs by the driver's own listing; no library is loaded."""
    names = []
    for info in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        match = re.search(r"^Model:\s*(.+)$", _read(str(info)) or "", re.MULTILINE)
        if match:
            names.append(match.group(1).strip())
    return names


def _cpuinfo() -> str:
    return _read("/proc/cpuinfo") or ""


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _mhz(path: str) -> int | None:
    value = _read(path)
    return int(value) // 1000 if value and value.isdigit() else None
