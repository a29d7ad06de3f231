"""What this machine is: cores, quota, memory, processor, GPUs, clock, installed versions.

Only this module reads these facts. Standard library only: the plan reads them on every run, and the module is
part of the program for devices.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

CPU_FLAGS = (
    "avx2",
    "f16c",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
)
"""CPU features that decide how fast float and INT8 networks run."""

ROOT = Path("/")
CPUFREQ = "sys/devices/system/cpu/cpu0/cpufreq"
SMI_TIMEOUT_S = 20.0


# Cores


def allowed_cores() -> tuple[int, ...]:
    """List the logical CPUs that this process may run on, in order."""
    try:
        return tuple(sorted(os.sched_getaffinity(0)))
    except AttributeError:  # not on Linux
        return tuple(range(os.cpu_count() or 1))


def cpu_quota(root: Path = ROOT) -> float | None:
    """Read the CPU time that control groups grant this process, in cores; None without a limit.

    Limits of every group from this process's own up to the root count (cgroup v2 `cpu.max`, cgroup v1
    `cpu.cfs_quota_us`): the smallest one binds.
    """
    quotas = [_quota_v2(folder) for folder in _cgroup_folders(root, "")]
    quotas += [_quota_v1(folder) for folder in _cgroup_folders(root, "cpu")]
    return min((quota for quota in quotas if quota is not None), default=None)


def usable_cpu(root: Path = ROOT) -> float:
    """Return the cores that affinity and quota leave to this process; 1.5 is one core and a half."""
    cores = float(len(allowed_cores()))
    quota = cpu_quota(root)
    return cores if quota is None else min(cores, quota)


def usable_cores(root: Path = ROOT) -> int:
    """Return how many threads can run at once in this process: `usable_cpu`, rounded down, at least 1."""
    return max(1, int(usable_cpu(root)))


def installed_cores() -> int:
    """Return the number of logical CPUs of the whole machine, usable or not."""
    return os.cpu_count() or 1


def load_average() -> float | None:
    """Return the number of runnable processes, averaged over the last minute; None if it is unknown."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


# Processor


def cpu_model() -> str:
    """Return the processor's name; on boards without one in /proc/cpuinfo, the board's."""
    match = re.search(
        r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", _read(ROOT / "proc/cpuinfo"), re.MULTILINE
    )
    if match:
        return match.group(1).strip()
    board = _read(ROOT / "proc/device-tree/model").strip("\0 \n")
    return board or platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """List those of `CPU_FLAGS` that this processor has."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _read(ROOT / "proc/cpuinfo"), re.MULTILINE)
    present = set(match.group(1).split()) if match else set()
    return [flag for flag in CPU_FLAGS if flag in present]


def computes_bf16() -> bool:
    """Return whether this processor multiplies bfloat16 in hardware (x86's AVX512 or AMX, Arm's BF16)."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(cpu_flags())


def cpu() -> dict[str, Any]:
    """Describe the processor: model, cores, usable cores, flags, governor and frequency in MHz."""
    return {
        "model": cpu_model(),
        "cores": installed_cores(),
        "cores_usable": usable_cpu(),
        "flags": cpu_flags(),
        "governor": governor(),
        "frequency_mhz": _mhz("scaling_cur_freq"),
    }


def governor() -> str | None:
    """Return the name of the frequency governor of core 0; None where there is none."""
    return _read(ROOT / CPUFREQ / "scaling_governor").strip() or None


# Memory


def memory_bytes() -> int:
    """Return the machine's physical memory in bytes; 0 where the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return 0


def memory_limit(root: Path = ROOT) -> int | None:
    """Read the memory that control groups grant this process, in bytes; None without a limit."""
    texts = [_read(folder / "memory.max") for folder in _cgroup_folders(root, "")]
    texts += [_read(folder / "memory.limit_in_bytes") for folder in _cgroup_folders(root, "memory")]
    # Version 1 writes "no limit" as the largest multiple of a page below 2**63.
    limits = [int(text) for text in texts if text.strip().isdigit() and int(text) < 2**62]
    return min(limits, default=None)


def memory() -> dict[str, Any]:
    """Return total, available and granted memory in bytes; None for what the system does not report."""
    text = _read(ROOT / "proc/meminfo")
    kibibytes = {name: int(count) for name, count in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return {
        "total_bytes": kibibytes.get("MemTotal", 0) * 1024 or None,
        "available_bytes": kibibytes.get("MemAvailable", 0) * 1024 or None,
        "limit_bytes": memory_limit(),
    }


# GPUs


def gpus() -> list[dict[str, Any]]:
    """List the NVIDIA GPUs: name and driver; where `nvidia-smi` is there, memory and compute capability."""
    rows = _query_smi("name", "driver_version", "memory.total", "compute_cap")
    if rows:
        keys = ("name", "driver", "memory", "compute_capability")
        return [dict(zip(keys, row, strict=True)) for row in rows]
    names, driver = _gpus_in_proc()
    return [{"name": name, "driver": driver or None} for name in names]


def gpu_facts() -> dict[str, str]:
    """Return `gpu`, the NVIDIA GPUs' names, sorted, and `driver`, its version; "none" without a driver.

    The driver's listing under /proc is read first: that starts no process. Where it is hidden (some
    containers, WSL), `nvidia-smi` is called, once per process.
    """
    names, driver = _gpus_in_proc()
    if not names:
        rows = _query_smi("name", "driver_version")
        names, driver = [row[0] for row in rows], rows[0][1] if rows else ""
    return {"gpu": ", ".join(sorted(names)) or "none", "driver": driver or "none"}


# Clock


def clock() -> dict[str, Any]:
    """Describe the clock for latencies: its nominal resolution and its smallest observed step, in ns."""
    return {
        "resolution_ns": round(time.get_clock_info("perf_counter").resolution * 1e9, 3),
        "smallest_step_ns": min(_clock_step_ns() for _ in range(1000)),
    }


# Installed versions


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those distributions that are installed, without importing anything.

    The versions come from the names of the folders on `sys.path`; the first one counts, the way it does for
    an import.
    """
    by_normal_name = {_normal(name): name for name in names}
    versions: dict[str, str] = {}
    for entry in sys.path:
        for name, version in _distributions(entry or "."):
            if name in by_normal_name:
                versions.setdefault(by_normal_name[name], version)
    return versions


# Descriptions made of the above


def identity(settings: object = None) -> dict[str, str]:  # noqa: ARG001 - the engine passes it
    """Return the properties of this machine that a latency depends on: never its name.

    Equal boards of a fleet have equal identities, so they share results. It is part of the key of stage
    `measure`.

    Args:
        settings: Not read; the engine passes them to every such function.
    """
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "cores": str(usable_cores()),
        "memory_gib": str(round(memory_bytes() / 2**30)),
        "gpu": gpu_facts()["gpu"],
    }


def describe() -> dict[str, Any]:
    """Return `identity` and the state of the machine, for a scorecard."""
    return {
        **identity(),
        "cpu_flags": cpu_flags(),
        "governor": governor(),
        "max_mhz": _mhz("cpuinfo_max_freq"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and of all groups above it.

    Args:
        root: The root of the file system (a test gives its own).
        controller: "" for version 2, else the name of a version 1 controller.
    """
    mount = root / "sys/fs/cgroup"
    own = "/"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == controller or (controller and controller in controllers.split(",")):
            own = path
            mount = mount / controllers if controllers else mount
            break
    else:
        mount = mount / controller if controller else mount
    folder = mount / own.lstrip("/")
    while folder != mount and mount in folder.parents:
        yield folder
        folder = folder.parent
    yield mount


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = (_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _gpus_in_proc() -> tuple[list[str], str]:
    """Read the NVIDIA driver's own listing under /proc, without loading a library."""
    names = []
    for file in sorted((ROOT / "proc/driver/nvidia/gpus").glob("*/information")):
        match = re.search(r"^Model:\s*(.+)$", _read(file), re.MULTILINE)
        if match:
            names.append(match.group(1).strip())
    match = re.search(r"Module\s+(\d[\d.]+)", _read(ROOT / "proc/driver/nvidia/version"))
    return names, match.group(1) if match else ""


@functools.cache
def _query_smi(*fields: str) -> list[list[str]]:
    """Return one row of fields for each GPU from `nvidia-smi`; [] if it is absent or fails."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return []
    import subprocess  # not at the top: the plan of every run imports this module

    answer = ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=SMI_TIMEOUT_S,
            check=True,
        ).stdout
    rows = [[part.strip() for part in line.split(",")] for line in answer.splitlines()]
    return [row for row in rows if len(row) == len(fields)]


def _clock_step_ns() -> int:
    first = later = time.perf_counter_ns()
    while later == first:
        later = time.perf_counter_ns()
    return later - first


def _distributions(folder: str) -> Iterator[tuple[str, str]]:
    try:
        entries = os.listdir(folder)  # noqa: PTH208 - a path object for each of hundreds costs more
    except OSError:
        return
    for entry in entries:
        if entry.endswith((".dist-info", ".egg-info")):
            name, _, version = entry[: -len(".dist-info")].partition("-")
            if version:
                yield _normal(name), version.partition("-")[0]  # an egg's name goes on with -py3.11


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _mhz(name: str) -> int | None:
    kilohertz = _read(ROOT / CPUFREQ / name).strip()
    return int(kilohertz) // 1000 if kilohertz.isdigit() else None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
