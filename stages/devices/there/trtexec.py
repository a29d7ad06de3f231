"""TensorRT by its command-line program, for devices that have the SDK but not its Python package.

trtexec keeps one inference in the queue while another runs; the latency it tells is copy in, computing
and copy out of one (samples/common/sampleReporting.cpp in NVIDIA/TensorRT), so the figures say "trtexec".
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import StageError
from stages.devices.there import facts, sessions
from stages.measuring import latency
from stages.measuring.watch import Watch

LAST_LINES = 5


def build(job: dict[str, Any], output: Path) -> dict[str, Any]:
    """Writes `model.engine` and, if timings are kept, `timing.cache`. Raises StageError if trtexec fails."""
    program, settings = str(facts.trtexec()), job["build"]
    command = [
        program,
        f"--onnx={job['onnx']}",
        f"--saveEngine={output / 'model.engine'}",
        "--stronglyTyped",
        "--skipInference",
        f"--memPoolSize=workspace:{settings['workspace_mb']}",
        f"--builderOptimizationLevel={settings['optimization_level']}",
        *(f"--{word}Shapes=input:{_shape(job, settings[f'batch_{word}'])}" for word in ("min", "opt", "max")),
    ]
    if settings["timing_cache"]:
        command.append(f"--timingCacheFile={output / 'timing.cache'}")
    _run(command, job)
    return {"built_by": "trtexec", "batches": [settings[f"batch_{word}"] for word in ("min", "opt", "max")]}


class TrtExec:
    """An engine run by trtexec, a process for every batch size."""

    clock = "trtexec"

    def __init__(self, job: dict[str, Any], folder: Path, program: str) -> None:
        self._job, self._folder, self._program = job, folder, program
        self.facts = {"threads": 1, "transfers": "included", "cuda_graph": False, "run_by": "trtexec"}

    def sample(
        self, images: np.ndarray, settings: dict[str, Any], watch: Watch
    ) -> tuple[latency.Samples, None]:
        """Samples as trtexec exports them; it does not tell CPU time, so contention is not judged."""
        times = self._folder / "times.json"
        seconds = max(settings["duration_s"], 1)
        self._infer(
            images,
            f"--exportTimes={times}",
            f"--warmUp={round(settings['warmup_s'] * 1000)}",
            f"--duration={seconds:g}",
            f"--iterations={settings['min_samples']}",
            "--useSpinWait",
        )
        told = json.loads(times.read_text(encoding="utf-8"))
        times.unlink()
        ns = np.asarray([round(entry["latencyMs"] * 1e6) for entry in told], np.int64)
        samples = latency.Samples(
            ns=ns,
            cpu_ns=np.zeros_like(ns),
            steady=latency.is_steady(ns),
            inner_loops=1,
            warmup=latency.Warmup(calls=0, seconds=settings["warmup_s"], steady=True),
            inferences=len(ns),
            seconds=round(float(ns.sum()) * 1e-9, 4),
            health={},
        )
        return samples, None

    def logits(self, images: np.ndarray) -> np.ndarray:
        exported = self._folder / "outputs.json"
        self._infer(images, f"--exportOutput={exported}", "--warmUp=0", "--duration=0", "--iterations=1")
        told = json.loads(exported.read_text(encoding="utf-8"))
        exported.unlink()
        values = next(entry["values"] for entry in told if entry["name"] == "logits")
        return np.asarray(values, np.float32).reshape(len(images), -1)

    def _infer(self, images: np.ndarray, *more: str) -> None:
        fed = self._folder / "input.bin"
        sessions.as_input(images, self._job).tofile(fed)
        engine = f"--loadEngine={self._folder / 'model.engine'}"
        shape = f"--shapes=input:{_shape(self._job, len(images))}"
        _run([self._program, engine, shape, f"--loadInputs=input:{fed}", *more], self._job)
        fed.unlink()


def _shape(job: dict[str, Any], batch: int) -> str:
    height, width, channels = job["image_shape"]
    sizes = (
        (batch, height, width, channels) if job["input"] == "uint8_nhwc" else (batch, channels, height, width)
    )
    return "x".join(map(str, sizes))


def _run(command: list[str], job: dict[str, Any]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(" ".join(command), done.stdout, sep="\n")
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if "[E]" in line] or done.stdout.splitlines()
        raise StageError(
            "trtexec failed on the device",
            where=job["target"],
            why="\n".join(lines[-LAST_LINES:]) or f"status {done.returncode}",
            mend="leave the target out of the device's targets",
        )
