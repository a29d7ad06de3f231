"""Measures one target of a bundle: latency first, in a process that has loaded nothing else.

It writes the samples of each combination (`stages.devices.sample_files`), `logits.npy` of the golden inputs,
`predictions.npy` of the test images (int32, n) if there are any, and `unfinished.json`, which the caller
renames to `result.json` once all is on the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import machine
from pipeline.errors import KdpipeError
from pipeline.heartbeat import Beats
from stages.devices import sample_files
from stages.devices.there import engines, sessions
from stages.devices.there.sampling import DeviceSession, Unavailable
from stages.measuring import latency, pinning
from stages.measuring.contention import Watch


def main(request_file: str) -> int:
    """Measure the target of a request; see `stages.devices.requests`.

    Returns:
        The exit code: 1 for a fault, whose message goes to standard error.
    """
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    output = Path(request["output"])
    try:
        with Path(request["beats"]).open("a", encoding="utf-8", buffering=1) as stream:
            stream.write(json.dumps({"pid": os.getpid()}) + "\n")
            result = work(request, output, Beats(stream.write))
    except Unavailable as why:
        result = {"why_not": str(why), "built": request["onnx"] is None, "latency": []}
    except KdpipeError as error:
        print(error, file=sys.stderr)
        return 1
    (output / "unfinished.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


def work(request: dict[str, Any], output: Path, beats: Beats) -> dict[str, Any]:
    """Measure a target.

    Args:
        request: see `stages.devices.requests`; paths are absolute here.
        output: the folder of the results.
        beats: reports the progress.

    Returns:
        The content of `result.json`.

    Raises:
        Unavailable: the target cannot run here.
    """
    bundle = Path(request["bundle"])
    folder, built = bundle / "models" / request["target"], {}
    if request["onnx"]:
        folder, built = output, engines.build(request, output, beats)
        if built["runs_why_not"]:
            return {"why_not": built.pop("runs_why_not"), "built": True, "build": built, "latency": []}
    beats.phase("loading the target")
    images = np.load(bundle / "golden" / "inputs.npy", allow_pickle=False)
    idle = _memory("VmRSS")
    load_before = machine.load_average()
    settings = request["settings"]
    entries: list[dict[str, Any]] = []
    loads: list[float] = []
    session: DeviceSession | None = None
    allowed = set(machine.allowed_cores())
    for threads in settings["threads"]:
        cores = _bind(allowed, threads, pinned=settings["pin"])
        beats.phase("loading the target", detail=f"threads {threads}")
        before = time.perf_counter()
        session = sessions.load(request, folder, threads)
        loads.append((time.perf_counter() - before) * 1e3)
        for batch in settings["batch_sizes"]:
            if batch > request["batch_max"]:
                entries.append({"batch": batch, "threads": threads, "samples": None})
                continue
            batch_images = np.ascontiguousarray(images[np.arange(batch) % len(images)])
            watch = Watch(cores, threads)
            samples, first_ms = session.sample(batch_images, settings, watch, beats)
            entries.append(
                {
                    "batch": batch,
                    "threads": threads,
                    "samples": sample_files.write_samples(samples, output, f"b{batch}-t{threads}"),
                    "cores": list(cores),
                    "first_ms": first_ms,
                    "too_many_threads": threads > len(allowed),
                }
            )
    assert session is not None
    peak = _memory("VmHWM")
    beats.phase("golden outputs", len(images), "images", every_s=0.0)
    np.save(
        output / "logits.npy", np.concatenate([*_logits(session, images, request, beats)]).astype(np.float32)
    )
    if request["images"]:
        test_images = np.load(request["images"], mmap_mode="r", allow_pickle=False)
        beats.phase("accuracy", len(test_images), "images", every_s=0.0)
        predictions = [part.argmax(axis=1) for part in _logits(session, test_images, request, beats)]
        beats.phase("writing the results")
        np.save(output / "predictions.npy", np.concatenate(predictions).astype(np.int32))
    return {
        "why_not": None,
        "built": True,
        "build": built,
        "latency": entries,
        "facts": session.facts,
        "load_ms": round(loads[0], 3),
        "first_inference_ms": entries[0].get("first_ms"),
        "peak_memory_bytes": peak,
        "memory_over_idle_bytes": max(0, peak - idle),
        "load_average": [load_before, machine.load_average()],
        "clock": session.clock,
        "clock_step_ns": latency.clock_step_ns(),
    }


def _logits(
    session: DeviceSession, images: np.ndarray, request: dict[str, Any], beats: Beats
) -> Iterator[np.ndarray]:
    """Yield the logits of uint8 images (n, H, W, C) by batches, each (batch, classes)."""
    step = min(request["settings"]["accuracy_batch"], request["batch_max"])
    for start in range(0, len(images), step):
        part = np.ascontiguousarray(images[start : start + step])
        # An engine takes no batch below its smallest: images are repeated, and their logits left out.
        repeated = part[np.arange(max(len(part), request["batch_min"])) % len(part)]
        logits = session.logits(repeated)[: len(part)]
        beats.step(start + len(part))
        yield logits


def _bind(allowed: set[int], threads: int, *, pinned: bool) -> tuple[int, ...]:
    """Bind this process, and the threads that it starts from now on, to as many of the idlest cores."""
    if not pinned:
        return tuple(sorted(allowed))
    with contextlib.suppress(AttributeError, OSError):  # a system without affinity
        os.sched_setaffinity(0, allowed)
    return pinning.pin(threads)


def _memory(field: str) -> int:
    """Return the resident memory of this process in bytes: `VmRSS` now, `VmHWM` at its peak; 0 if unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0
