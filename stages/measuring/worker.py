"""A program that measures one target: `python -P -m stages.measuring.worker JOB.json`.

Each measurement has a new process, bound to its cores: the threads, caches and memory of one runtime cannot
affect the figures of another, and a crash of a runtime ends only this process. The job file has the mode:

    latency    closed loop at one batch size and thread count: `samples.npy`, `cpu.npy`
    open_loop  scheduled arrivals at one rate: `served.npy`
    turns      load, warm up, then measure a round for each line on stdin; the answer on stdout has the
               samples, and the CPU time and context switches since warm-up
    accuracy   the logits of every test image: `logits.npy`

At the end the figures are written as `result.json` into the job's output folder. Standard output is for beats
(`pipeline.heartbeat`) and answers, one JSON object per line; a runtime's own output goes to standard error.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import machine
from pipeline.errors import KdpipeError
from pipeline.heartbeat import Beats
from stages.measuring import energy, gpu, latency, open_loop
from stages.measuring.contention import Watch
from stages.runtimes import registry
from stages.runtimes.base import Session, Source
from stages.runtimes.on_gpu import GpuSession, GpuTiming

SETTLING_CALLS = 2
"""Uncounted calls at the start of a round, because the other target has replaced the caches' content."""

ROUND_CALLS = 3
"""Minimum number of counted calls of a round."""

LOADING, FIRST, WARM_UP, STATISTICS = "loading the target", "the first inference", "warm-up", "statistics"

WriteLine = Callable[[str], object]
"""Writes a line to the process that started this one."""


def main(job_file: str) -> int:
    """Measure what the job file describes, and return the exit code."""
    _die_with_parent()
    # Stays open until the process ends: the reader sees the end of the stream only then.
    write_line = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1).write
    os.dup2(2, 1)
    beats = Beats(write_line)
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    output = Path(job["output"])
    with contextlib.suppress(AttributeError, OSError):  # where a process cannot choose its cores
        os.sched_setaffinity(0, job["cores"])
    modes = {"latency": measure_latency, "open_loop": measure_under_load, "accuracy": compute_logits}
    try:
        if job["mode"] == "turns":
            result = measure_in_turns(job, beats, write_line)
        else:
            result = modes[job["mode"]](job, output, beats)
    except KdpipeError as error:
        result = {"error": error.as_json()}
    (output / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


def measure_latency(job: dict[str, Any], output: Path, beats: Beats) -> dict[str, Any]:
    """Measure latency in a closed loop, load time, first inference, energy and memory."""
    settings, batch, threads = job["settings"], job["batch"], job["threads"]
    images = _images(job, batch)
    idle = _memory("VmRSS")
    load_before = machine.load_average()
    beats.phase(LOADING)
    before = time.perf_counter()
    session = _load(job)
    load_ms = (time.perf_counter() - before) * 1e3
    timing = _timing(session, images, settings)
    call = timing.call if timing else session.timed(images)
    beats.phase(FIRST)
    before = time.perf_counter()
    call()
    first_ms = (time.perf_counter() - before) * 1e3
    meter = energy.find_source(on_gpu=timing is not None)
    idle_s, idle_w = settings["energy_idle_s"], 0.0
    if not isinstance(meter, str):
        beats.phase("idle power", idle_s, "s")
        idle_w = energy.idle_watts(meter, idle_s, beats.step)
    beats.phase(WARM_UP, settings["warmup_max_s"], "s")

    def begin() -> None:
        if not isinstance(meter, str):
            meter.start()
        beats.phase("sampling", settings["duration_s"], "s")

    samples = latency.sample(
        call,
        warmup_s=settings["warmup_s"],
        warmup_max_s=settings["warmup_max_s"],
        duration_s=settings["duration_s"],
        max_duration_s=settings["max_duration_s"],
        min_samples=settings["min_samples"],
        watch=Watch(tuple(job["cores"]), threads, gpu=gpu.gpu_watch(job["runtime"])),
        between=begin,
        warming=beats.step,
        sampling=beats.step,
    )
    used = energy.figures(
        meter,
        joules=0.0 if isinstance(meter, str) else meter.stop(),
        idle_w=idle_w,
        seconds=samples.seconds,
        inferences=samples.inferences,
        batch=batch,
    )
    peak = _memory("VmHWM")
    beats.phase(STATISTICS)
    np.save(output / "samples.npy", samples.ns)
    np.save(output / "cpu.npy", samples.cpu_ns)
    entry = latency.summarise(samples, batch=batch, threads=threads, resamples=settings["resamples"])
    if timing:
        beats.phase("phases on the GPU", gpu.PHASES, "inferences")
    phases = gpu.phases(timing, beats.step) if timing else None
    if threads > machine.usable_cores():
        entry["flags"].append("more threads than cores")
    if load_before is not None and load_before > machine.installed_cores():
        entry["flags"].append("busy machine")
    return {
        "entry": {
            **entry,
            "cores": job["cores"],
            "load_ms": round(load_ms, 3),
            "first_inference_ms": round(first_ms, 3),
            "energy": used,
            "gpu": phases,
        },
        "facts": session.facts,
        "peak_memory_bytes": peak,
        "memory_over_idle_bytes": max(0, peak - idle),
        "load_average": [load_before, machine.load_average()],
        "clock": "time.perf_counter_ns",
        "clock_step_ns": latency.clock_step_ns(),
    }


def measure_under_load(job: dict[str, Any], output: Path, beats: Beats) -> dict[str, Any]:
    """Measure latency under scheduled arrivals, counted from when they were due."""
    settings, rate = job["settings"], job["rate_per_s"]
    call = _warm_call(job, beats)
    due = open_loop.schedule_ns(rate, settings["arrivals_s"], settings["arrivals"])
    spent = [0]

    def counted() -> None:
        before = time.process_time_ns()
        call()
        spent[0] += time.process_time_ns() - before

    watch = Watch(tuple(job["cores"]), job["threads"], gpu=gpu.gpu_watch(job["runtime"]))
    beats.phase("scheduled arrivals", settings["arrivals_s"], "s")
    watch.begin()
    served = open_loop.serve(counted, due, beats.step)
    service_ns = int((served[:, 2] - served[:, 1]).sum())
    # Waiting for an arrival is no delay by others, so only serving counts.
    health = watch.end(round(service_ns / spent[0], 3) if spent[0] else None)
    beats.phase(STATISTICS)
    np.save(output / "served.npy", served)
    entry = open_loop.summarise(
        served,
        len(due),
        rate_per_s=rate,
        arrivals=settings["arrivals"],
        resamples=settings["resamples"],
    )
    flags = [*health.pop("flags"), *entry.pop("flags")]
    return {"batch": job["batch"], "threads": job["threads"], **entry, "health": health, "flags": flags}


def measure_in_turns(job: dict[str, Any], beats: Beats, write_line: WriteLine) -> dict[str, Any]:
    """Measure a round for each line on stdin, and write the answer that `turns` reads to stdout."""
    settings = job["settings"]
    call = _warm_call(job, beats)
    round_s = settings["compare_s"] / (2 * settings["compare_rounds"] * settings["compare_launches"])
    calls, round_wall_s, round_cpu_s = 0, 0.0, 0.0
    cpu_s, switches = time.process_time(), _switches()
    beats.phase("rounds in turns")

    def answer(ns: list[int]) -> None:
        used = {"cpu_s": time.process_time() - cpu_s, "switches": _switches() - switches}
        spent = {"round_wall_s": round_wall_s, "round_cpu_s": round_cpu_s}
        write_line(json.dumps({"ns": ns, **used, **spent}) + "\n")

    with latency.collector_off():
        answer([])
        for _ in sys.stdin:
            began_s, cpu_began_s = time.perf_counter(), time.process_time()
            ns = _round(call, round_s, beats, calls)
            calls += SETTLING_CALLS + len(ns)
            round_wall_s += time.perf_counter() - began_s
            round_cpu_s += time.process_time() - cpu_began_s
            answer(ns)
    return {}


def compute_logits(job: dict[str, Any], output: Path, beats: Beats) -> dict[str, Any]:
    """Compute the logits of every test image in batches, and save them: float32 (n, classes)."""
    beats.phase(LOADING)
    session = _load(job)
    images = np.load(job["images"], mmap_mode="r")
    step = min(job["settings"]["accuracy_batch"], job["batch_max"])
    logits = []
    beats.phase("accuracy", len(images), "images", every_s=0.0)  # nothing is timed here
    for start in range(0, len(images), step):
        part = images[start : start + step]
        # An engine accepts no batch below its minimum: images are repeated, and their logits left out.
        padded = part[np.arange(max(len(part), job["batch_min"])) % len(part)]
        logits.append(session.logits(np.ascontiguousarray(padded))[: len(part)])
        beats.step(start + len(part))
    beats.phase("writing the logits")
    np.save(output / "logits.npy", np.concatenate(logits).astype(np.float32))
    return {}


def _round(call: Callable[[], None], round_s: float, beats: Beats, calls: int) -> list[int]:
    """Return the nanoseconds of each counted call of a round.

    Args:
        call: One inference.
        round_s: Minimum length of the round.
        beats: Reports each call.
        calls: Calls in earlier rounds, for the beats.
    """
    for number in range(SETTLING_CALLS):
        call()
        beats.step(calls + number + 1)
    ns: list[int] = []
    until = time.perf_counter() + round_s
    while len(ns) < ROUND_CALLS or time.perf_counter() < until:
        before = time.perf_counter_ns()
        call()
        ns.append(time.perf_counter_ns() - before)
        beats.step(calls + SETTLING_CALLS + len(ns))
    return ns


def _warm_call(job: dict[str, Any], beats: Beats) -> Callable[[], None]:
    settings = job["settings"]
    beats.phase(LOADING)
    session, images = _load(job), _images(job, job["batch"])
    timing = _timing(session, images, settings)
    call = timing.call if timing else session.timed(images)
    beats.phase(WARM_UP, settings["warmup_max_s"], "s")
    latency.warm_up(
        call, warmup_s=settings["warmup_s"], warmup_max_s=settings["warmup_max_s"], warming=beats.step
    )
    return call


def _timing(session: Session, images: np.ndarray, settings: dict[str, Any]) -> GpuTiming | None:
    """Return the call with CUDA graph and copies as in the profile, and its phases; None on a CPU."""
    if not isinstance(session, GpuSession):
        return None
    return session.timed_on_gpu(images, cuda_graph=settings["cuda_graph"], transfers=settings["transfers"])


def _load(job: dict[str, Any]) -> Session:
    folder = Path(job["folder"])
    source = Source(
        onnx=folder / "not-needed.onnx",
        precision=job["precision"],
        image_shape=tuple(job["image_shape"]),
        input=job["input"],
        mean=tuple(job["mean"]),
        std=tuple(job["std"]),
    )
    return registry.get(job["runtime"]).load(folder, source, job["threads"])


def _images(job: dict[str, Any], batch: int) -> np.ndarray:
    """Return the first `batch` test images, repeated if there are fewer."""
    images = np.load(job["images"], mmap_mode="r")
    return np.ascontiguousarray(images[np.arange(batch) % len(images)])


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _memory(field: str) -> int:
    """Return resident memory of this process in bytes: `VmRSS` now, `VmHWM` at its peak; 0 if unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0


def _die_with_parent() -> None:
    """End this process when its parent ends: a worker left behind would disturb later measurements."""
    with contextlib.suppress(OSError, AttributeError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
