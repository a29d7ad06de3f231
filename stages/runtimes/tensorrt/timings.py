"""What is kept from build to build on one GPU: the SDK's timings, and how long builds took. Light.

The SDK's timings hold for one version, GPU, compute capability and driver: those are the file's name,
and a file of another name is never read. What lies in the file the SDK checks once more.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.machine import gpu_facts
from pipeline.stage import Progress
from stages.runtimes.tensorrt.build import Specification

FOLDER = "KDPIPE_TIMING_CACHE"
"""Environment variable: a folder to keep them in from run to run; else they last for one build stage."""

DURATIONS = "durations.json"
"""Seconds that builds took, by `duration_key`: from these the next one's time to go is told."""


def identity(package: str, told: Mapping[str, Any]) -> str:
    """Version, GPU, compute capability, CUDA and driver, as a file's name; "" without a GPU.

    told: what `probe.ask` answered.
    """
    version, device = told.get("version"), told.get("device", {})
    if "name" not in device or not version:
        return ""
    capability, driver = device["compute_capability"], gpu_facts()["driver"]
    named = f"{package}-{version}-{device['name']}-sm{capability}-{device['driver']}-driver-{driver}"
    return re.sub(r"[^A-Za-z0-9.-]+", "_", named)


def folder(work: Path) -> Path:
    """The user's folder, or that of this build; it is there on return.

    Raises UsageError if the user's cannot be made.
    """
    named = os.environ.get(FOLDER)
    found = Path(named or work)
    try:
        found.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if not named:
            raise
        raise UsageError(
            "the folder of timings cannot be made",
            where=FOLDER,
            why=str(error),
            hint=f"set {FOLDER} to a folder that can be written, or unset it",
        ) from error
    return found


def tell_of_others(timings: Path, package: str, progress: Progress) -> None:
    """Notes that the kept timings are of another machine, where there are none of this one."""
    others = [other for other in timings.parent.glob(f"{package}-*.cache") if other != timings]
    if others and not timings.exists():
        progress.note(f"{package}: the kept timings are of another GPU, driver or version: timing anew")


def duration_key(specification: Specification, named: str, precision: str, nodes: int) -> str:
    """Builds with equal keys take about equally long: package, GPU, level, precision, size of the graph.

    named: what `identity` gives, or the package alone.
    """
    level, batches = specification.optimization_level, "-".join(map(str, specification.batches))
    return f"{named} {precision} {nodes} nodes level {level} batches {batches}"


def read_duration(folder: Path, key: str) -> float | None:
    """How long the like took before, in seconds; None if nobody knows."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return float(json.loads((folder / DURATIONS).read_text(encoding="utf-8"))[key])
    return None


def keep_duration(folder: Path, key: str, seconds: float) -> None:
    """For the next build. Two builds at once may lose one's figure, which costs an estimate."""
    file = folder / DURATIONS
    known: dict[str, float] = {}
    with suppress(OSError, ValueError):
        known = dict(json.loads(file.read_text(encoding="utf-8")))
    known[key] = round(seconds, 1)
    part = file.with_name(f"{file.name}.part")
    with suppress(OSError):
        part.write_text(json.dumps(known, indent=1), encoding="utf-8")
        part.replace(file)
