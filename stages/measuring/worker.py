"""Measures one target, in a process of its own: `python -m stages.measuring.worker JOB.json`.

A fresh process a target, so that no runtime's threads, caches or memory reach into another's
figures, and a runtime that crashes takes down nothing else. The job file names everything;
results are written as `result.json`, `logits.npy` (of every test image) and one `bB-tT.npy` a
combination into the job's output folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import KdpipeError
from stages.measuring import latency, machine
from stages.runtimes import registry
from stages.runtimes.base import Session, Source


def main(job_file: str) -> int:
    _die_with_parent()
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    output = Path(job["output"])
    try:
        result = measure(job, output)
    except KdpipeError as error:
        result = {"error": error.as_json()}
    (output / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


def measure(job: dict[str, Any], output: Path) -> dict[str, Any]:
    """Latency first, on a process that has loaded nothing but the target; accuracy afterwards."""
    runtime = registry.get(job["runtime"])
    settings = job["settings"]
    source = Source(
        onnx=Path(job["folder"]) / "not-needed.onnx",
        precision=job["precision"],
        image_shape=tuple(job["image_shape"]),
        input=job["input"],
        mean=tuple(job["mean"]),
        std=tuple(job["std"]),
    )
    images = np.load(job["images"], mmap_mode="r")
    idle = _memory("VmRSS")
    load_before = machine.load_average()
    entries: list[dict[str, Any]] = []
    first_load_ms = first_inference_ms = 0.0
    session: Session | None = None
    for threads in settings["threads"]:
        before = time.perf_counter()
        session = runtime.load(Path(job["folder"]), source, threads)
        load_ms = (time.perf_counter() - before) * 1e3
        for batch in settings["batch_sizes"]:
            if batch > job["batch_max"]:
                entries.append({"batch": batch, "threads": threads, "n": 0, "flags": ["batch not built"]})
                continue
            call = session.timed(_take(images, batch))
            before = time.perf_counter()
            call()
            if not first_load_ms:
                first_load_ms = load_ms
                first_inference_ms = (time.perf_counter() - before) * 1e3
            samples = latency.sample(
                call,
                warmup_s=settings["warmup_s"],
                duration_s=settings["duration_s"],
                max_duration_s=settings["max_duration_s"],
                min_samples=settings["min_samples"],
            )
            np.save(output / f"b{batch}-t{threads}.npy", samples.ns)
            entry = latency.summarise(samples, batch=batch, threads=threads, resamples=settings["resamples"])
            if threads > machine.usable_cores():
                entry["flags"].append("more threads than cores")
            entries.append(entry)
    assert session is not None
    peak = _memory("VmHWM")

    step = min(settings["accuracy_batch"], job["batch_max"])
    logits = np.concatenate(
        [
            session.logits(np.ascontiguousarray(images[start : start + step]))
            for start in range(0, len(images), step)
        ]
    )
    np.save(output / "logits.npy", logits.astype(np.float32))
    return {
        "latency": entries,
        "facts": session.facts,
        "load_ms": round(first_load_ms, 3),
        "first_inference_ms": round(first_inference_ms, 3),
        "peak_memory_bytes": peak,
        "memory_over_idle_bytes": max(0, peak - idle),
        "load_average": [load_before, machine.load_average()],
        "clock": "time.perf_counter_ns",
        "clock_step_ns": latency.clock_step_ns(),
    }


def _take(images: np.ndarray, batch: int) -> np.ndarray:
    """The first `batch` test images, going round if there are fewer."""
    return np.ascontiguousarray(images[np.arange(batch) % len(images)])


def _memory(field: str) -> int:
    """Resident memory of this process in bytes: `VmRSS` now, `VmHWM` at its peak; 0 if unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0


def _die_with_parent() -> None:
    """A killed run must not leave a worker behind that disturbs the next one's figures."""
    with contextlib.suppress(OSError, AttributeError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
