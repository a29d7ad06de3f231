"""The cores that a measured process runs on: one per thread, the idlest, on distinct physical cores.

Light: standard library only.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from pipeline.machine import allowed_cores
from stages.measuring.contention import core_ticks, read

WATCH_S = 0.1
"""How long the cores are watched to find the idlest ones."""


def pin(threads: int) -> tuple[int, ...]:
    """Bind this process and its later threads to the idlest cores, and return the cores that it may use.

    Where the system has no call for this, nothing is bound and all cores of the process are returned.
    """
    try:
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, choose_cores(threads, allowed))
        return tuple(sorted(os.sched_getaffinity(0)))
    except (AttributeError, OSError):
        return allowed_cores()


def choose_cores(threads: int, allowed: set[int], root: Path = Path("/")) -> set[int]:
    """Return `threads` of the allowed logical CPUs: the idlest ones that share no physical core.

    CPUs that share a physical core are used only if no others are left. Of equally idle CPUs those with the
    highest numbers are used, because the lowest usually serve the interrupts.

    Args:
        threads: How many CPUs; at least 1 is returned, at most all allowed ones.
        allowed: The logical CPUs to choose from.
        root: The folder that contains `proc` and `sys`.
    """
    before = {core: core_ticks((core,), root) for core in allowed}
    time.sleep(WATCH_S)
    busy = {}
    for core in allowed:
        first, last = before[core], core_ticks((core,), root)
        busy[core] = last.busy_s + last.steal_s - first.busy_s - first.steal_s if first and last else 0.0
    ranked = sorted(allowed, key=lambda core: (round(busy[core], 2), -core))
    chosen: list[int] = []
    twins: list[int] = []
    taken: set[int] = set()
    for core in ranked:
        (twins if core in taken else chosen).append(core)
        taken |= siblings(core, root)
    return set((chosen + twins)[: max(1, threads)])


def siblings(core: int, root: Path = Path("/")) -> set[int]:
    """Return the logical CPUs on the same physical core, this one included."""
    text = read(root / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list") or str(core)
    cores = {core}
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match:
            cores |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return cores
