"""Measures one target, in a process of its own: `python -P -m stages.measuring.worker JOB.json`.

A fresh process a measurement, bound to its cores, so that no runtime's threads, caches or memory
reach into another's figures, and a runtime that crashes takes down nothing else. The job file names
everything and the mode:

    latency    closed loop at one batch size and thread count: `samples.npy`, `cpu.npy`
    open_loop  scheduled arrivals at one rate: `served.npy`
    turns      loads, warms up, then measures a round for each line on stdin, answered on stdout: the
               samples, and what the process has used since it was warm
    accuracy   the logits of every test image: `logits.npy`

The figures are written as `result.json` into the job's output folder, last of all. Standard output is for
beats (`pipeline.heartbeat`) and answers, a JSON object a line; what a runtime prints goes to standard error.
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
"""Uncounted calls at the start of a turn: the other target has emptied the caches."""

ROUND_CALLS = 3
"""Fewest counted calls of a turn."""

LOADING, FIRST, WARM_UP, STATISTICS = "loading the target", "the first inference", "warm-up", "statistics"

Say = Callable[[str], object]
"""Writes a line to whoever started this process."""


def main(job_file: str) -> int:
    _die_with_parent()
    # Stays open until the process has ended, so that its end is the end of the stream.
    say = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1).write
    os.dup2(2, 1)
    beats = Beats(say)
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    output = Path(job["output"])
    with contextlib.suppress(AttributeError, OSError):  # where a process cannot choose its cores
        os.sched_setaffinity(0, job["cores"])
    modes = {"latency": timed, "open_loop": under_load, "accuracy": accuracy}
    try:
        if job["mode"] == "turns":
            result = in_turns(job, beats, say)
        else:
            result = modes[job["mode"]](job, output, beats)
    except KdpipeError as error:
        result = {"error": error.as_json()}
    (output / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


def timed(job: dict[str, Any], output: Path, beats: Beats) -> dict[str, Any]:
    """Latency in a closed loop, load time, first inference and memory."""
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
    meter = energy.find(on_gpu=timing is not None)
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
        watch=Watch(tuple(job["cores"]), threads, gpu=gpu.watch_of(job["runtime"])),
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


def under_load(job: dict[str, Any], output: Path, beats: Beats) -> dict[str, Any]:
    """Latency of arrivals on a schedule, counted from when they were due."""
    settings, rate = job["settings"], job["rate_per_s"]
    call = _warm_call(job, beats)
    due = open_loop.schedule_ns(rate, settings["arrivals_s"], settings["arrivals"])
    spent = [0]

    def counted() -> None:
        before = time.process_time_ns()
        call()
        spent[0] += time.process_time_ns() - before

    watch = Watch(tuple(job["cores"]), job["threads"], gpu=gpu.watch_of(job["runtime"]))
    beats.phase("scheduled arrivals", settings["arrivals_s"], "s")
    watch.begin()
    served = open_loop.serve(counted, due, beats.step)
    service_ns = int((served[:, 2] - served[:, 1]).sum())
    # While it waits for an arrival it is not held up, so only serving counts.
    health = watch.end(round(service_ns / spent[0], 3) if spent[0] else None)
    beats.phase(STATISTICS)
    np.save(output / "served.npy", served)
    found = open_loop.summarise(
        served,
        len(due),
        rate_per_s=rate,
        arrivals=settings["arrivals"],
        resamples=settings["resamples"],
    )
    flags = [*health.pop("flags"), *found.pop("flags")]
    return {"batch": job["batch"], "threads": job["threads"], **found, "health": health, "flags": flags}


def in_turns(job: dict[str, Any], beats: Beats, say: Say) -> dict[str, Any]:
    """A round for each line on stdin, answered as `turns` reads it on stdout."""
    settings = job["settings"]
    call = _warm_call(job, beats)
    round_s = settings["compare_s"] / (2 * settings["compare_rounds"] * settings["compare_launches"])
    calls, round_wall_s, round_cpu_s = 0, 0.0, 0.0
    cpu_s, switches = time.process_time(), _switches()
    beats.phase("rounds in turns")

    def answer(ns: list[int]) -> None:
        used = {"cpu_s": time.process_time() - cpu_s, "switches": _switches() - switches}
        spent = {"round_wall_s": round_wall_s, "round_cpu_s": round_cpu_s}
        say(json.dumps({"ns": ns, **used, **spent}) + "\n")

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


def accuracy(job: dict[str, Any], output: Path, beats: Beats) -> dict[str, Any]:
    """The logits of every test image, by batches."""
    beats.phase(LOADING)
    session = _load(job)
    images = np.load(job["images"], mmap_mode="r")
    step = min(job["settings"]["accuracy_batch"], job["batch_max"])
    logits = []
    beats.phase("accuracy", len(images), "images", every_s=0.0)  # nothing is timed here
    for start in range(0, len(images), step):
        part = images[start : start + step]
        # An engine takes no batch below its smallest: images go round, and their answers are left out.
        fed = part[np.arange(max(len(part), job["batch_min"])) % len(part)]
        logits.append(session.logits(np.ascontiguousarray(fed))[: len(part)])
        beats.step(start + len(part))
    beats.phase("writing the logits")
    np.save(output / "logits.npy", np.concatenate(logits).astype(np.float32))
    return {}


def _round(call: Callable[[], None], round_s: float, beats: Beats, calls: int) -> list[int]:
    """Nanoseconds of each counted call. calls: how many were made in rounds before, for the beats."""
    for number in range(SETTLING_CALLS):
        call()
        beats.step(calls + number + 1)
    found: list[int] = []
    until = time.perf_counter() + round_s
    while len(found) < ROUND_CALLS or time.perf_counter() < until:
        before = time.perf_counter_ns()
        call()
        found.append(time.perf_counter_ns() - before)
        beats.step(calls + SETTLING_CALLS + len(found))
    return found


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
    """On a GPU, the call as the profile wants it, and its phases; None on a CPU."""
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
    """The first `batch` test images, going round if there are fewer."""
    images = np.load(job["images"], mmap_mode="r")
    return np.ascontiguousarray(images[np.arange(batch) % len(images)])


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


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
