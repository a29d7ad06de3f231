"""Files that stay from build to build on one GPU: the SDK's timings, and how long builds took. Light.

The SDK's timings are valid for one version, GPU, compute capability and driver. These form the file's name,
and a file of another name is never read. The SDK checks the file's content once more.
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
"""Environment variable: the folder of these files from run to run; without it they last for one build
stage."""

DURATIONS = "durations.json"
"""Seconds that builds took, by `duration_key`, for the estimate of the next build."""


def identity(package: str, abilities: Mapping[str, Any]) -> str:
    """Return a file's name of version, GPU, compute capability, CUDA and driver; "" without a GPU.

    Args:
        package: `tensorrt` or `tensorrt_rtx`.
        abilities: the answer of `stages.runtimes.probe.ask`.
    """
    version, device = abilities.get("version"), abilities.get("device", {})
    if "name" not in device or not version:
        return ""
    capability, driver = device["compute_capability"], gpu_facts()["driver"]
    name = f"{package}-{version}-{device['name']}-sm{capability}-{device['driver']}-driver-{driver}"
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name)


def folder(work: Path) -> Path:
    """Return the user's folder, or that of this build; it exists on return.

    Raises:
        UsageError: the user's folder cannot be created.
    """
    by_user = os.environ.get(FOLDER)
    path = Path(by_user or work)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if not by_user:
            raise
        raise UsageError(
            "the folder of timings cannot be created",
            where=FOLDER,
            why=str(error),
            hint=f"set {FOLDER} to a writable folder, or unset it",
        ) from error
    return path


def note_other_timings(timings: Path, package: str, progress: Progress) -> None:
    """Note that the kept timings are of another machine, if there are none of this machine."""
    others = [other for other in timings.parent.glob(f"{package}-*.cache") if other != timings]
    if others and not timings.exists():
        progress.note(f"{package}: the kept timings are of another GPU, driver or version: timing anew")


def duration_key(specification: Specification, machine: str, precision: str, nodes: int) -> str:
    """Return a key of builds that take about equally long.

    Args:
        specification: what to build.
        machine: the result of `identity`, or only the package.
        precision: of the target.
        nodes: of the graph.
    """
    level, batches = specification.optimization_level, "-".join(map(str, specification.batches))
    return f"{machine} {precision} {nodes} nodes level {level} batches {batches}"


def read_duration(folder: Path, key: str) -> float | None:
    """Return how long a build of this key took before, in seconds; None: unknown."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return float(json.loads((folder / DURATIONS).read_text(encoding="utf-8"))[key])
    return None


def save_duration(folder: Path, key: str, seconds: float) -> None:
    """Save a build's duration. Two builds at once may lose a figure, which costs an estimate."""
    file = folder / DURATIONS
    known: dict[str, float] = {}
    with suppress(OSError, ValueError):
        known = dict(json.loads(file.read_text(encoding="utf-8")))
    known[key] = round(seconds, 1)
    part = file.with_name(f"{file.name}.part")
    with suppress(OSError):
        part.write_text(json.dumps(known, indent=1), encoding="utf-8")
        part.replace(file)
