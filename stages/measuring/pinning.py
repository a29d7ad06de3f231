"""Which cores a measured process runs on: as many as it has threads, the idlest, none of them twins.

Light: standard library alone.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from pipeline.machine import allowed_cores
from stages.measuring.contention import core_ticks, read

LOOK_S = 0.1
"""How long the cores are watched to find the idlest."""


def pin(threads: int) -> tuple[int, ...]:
    """Binds this process and its later threads to `choose`n cores; returns those it may now use.

    Where the system does not let a process choose, nothing is bound and all its cores are returned.
    """
    try:
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, choose(threads, allowed))
        return tuple(sorted(os.sched_getaffinity(0)))
    except (AttributeError, OSError):
        return allowed_cores()


def choose(threads: int, allowed: set[int], root: Path = Path("/")) -> set[int]:
    """Of the allowed logical CPUs, `threads` that share no physical core, the idlest just now.

    Twins of chosen ones are taken only when there are no others left; of equally idle cores those
    with the highest numbers, since the lowest usually serve the interrupts.
    """
    before = {core: core_ticks((core,), root) for core in allowed}
    time.sleep(LOOK_S)
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
    """The logical CPUs on the same physical core, itself among them."""
    text = read(root / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list") or str(core)
    found = {core}
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match:
            found |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return found
