"""TensorRT by its command-line program, for devices that have the SDK but not its Python package.

trtexec keeps one inference in the queue while another runs; the latency it tells is copy in, computing
and copy out of one (samples/common/sampleReporting.cpp in NVIDIA/TensorRT), so the figures say "trtexec".
TensorRT 11 turned its defaults round: graphs are on and copies left out, unless it is told otherwise.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import StageError
from pipeline.heartbeat import Beats
from stages.devices.there import session
from stages.devices.there.trtexec_program import Program
from stages.measuring import latency
from stages.measuring.contention import Watch
from stages.runtimes.tensorrt import options as tensorrt_options

LAST_LINES = 5


def build(program: Program, job: dict[str, Any], output: Path) -> dict[str, Any]:
    """Writes `model.engine` and, if timings are kept, `timing.cache`. Raises StageError if trtexec fails."""
    settings, engine = job["build"], output / "model.engine"
    batches = {word: settings[f"batch_{word}"] for word in ("min", "opt", "max")}
    command = [
        program.path,
        f"--onnx={job['onnx']}",
        f"--saveEngine={engine}",
        "--stronglyTyped",
        "--noTF32",
        "--skipInference",
        f"--memPoolSize=workspace:{settings['workspace_mb']}",
        f"--builderOptimizationLevel={settings['optimization_level']}",
        *(f"--{word}Shapes=input:{_shape(job, batch)}" for word, batch in batches.items()),
        *_options(job),
    ]
    timings, kept = output / "timing.cache", Path(job["timings"]) / f"trtexec-{program.version}.cache"
    if settings["timing_cache"]:
        if kept.is_file():
            timings.write_bytes(kept.read_bytes())
        command.append(f"--timingCacheFile={timings}")
    engine.unlink(missing_ok=True)
    _run(command, job, makes=engine)
    if timings.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(timings.read_bytes())
    return {"built_by": f"trtexec {program.version}", "batches": list(batches.values())}


def _options(job: dict[str, Any]) -> list[str]:
    """The build section's further wishes. Raises StageError for the one that takes TensorRT's package."""
    options = tensorrt_options.options_of("tensorrt", job["build"])
    if options.version_compatible:
        raise StageError(
            "trtexec builds no version-compatible engine here",
            where=f"{job['target']}, build.version_compatible",
            why="such an engine runs host code when it is loaded, which only the package is told to allow",
            hint="install TensorRT's Python package on the device, or --set build.version_compatible=false",
        )
    level = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}
    wanted = level.get(options.hardware_compatible)
    return ["--refit"] * options.refit + [f"--hardwareCompatibilityLevel={wanted}"] * bool(wanted)


class TrtExec:
    """An engine run by trtexec, a process for every batch size."""

    clock = "trtexec"

    def __init__(self, job: dict[str, Any], folder: Path, program: Program) -> None:
        self._job, self._folder, self._program = job, folder, program
        settings = job["settings"]
        self._launch = program.words(graph=settings["cuda_graph"], transfers=settings["transfers"])
        self.facts = {
            "version": program.version,
            "threads": 1,
            "transfers": "included" if settings["transfers"] else "left out",
            "cuda_graph": settings["cuda_graph"],
            "run_by": "trtexec",
        }

    def sample(
        self, images: np.ndarray, settings: dict[str, Any], watch: Watch, beats: Beats
    ) -> tuple[latency.Samples, None]:
        """Samples as trtexec exports them; it does not tell CPU time, so contention is not judged."""
        beats.phase("sampling by trtexec", detail=f"batch {len(images)}")
        told = self._infer(
            images,
            "exportTimes",
            *self._launch,
            f"--warmUp={round(settings['warmup_s'] * 1000)}",
            f"--duration={max(settings['duration_s'], 1):g}",
            f"--iterations={settings['min_samples']}",
        )
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
        # Without the copies the outputs would not be brought back.
        copied = self._program.words(graph=False, transfers=True)
        told = self._infer(images, "exportOutput", *copied, "--warmUp=0", "--duration=0", "--iterations=1")
        values = next(entry["values"] for entry in told if entry["name"] == "logits")
        return np.asarray(values, np.float32).reshape(len(images), -1)

    def _infer(self, images: np.ndarray, export: str, *more: str) -> list[dict[str, Any]]:
        """Runs the engine on these images; the entries of the file that `export` names."""
        fed, exported = self._folder / "input.bin", self._folder / f"{export}.json"
        session.as_input(images, self._job).tofile(fed)
        command = [
            self._program.path,
            f"--loadEngine={self._folder / 'model.engine'}",
            f"--shapes=input:{_shape(self._job, len(images))}",
            f"--loadInputs=input:{fed}",
            f"--{export}={exported}",
            *more,
        ]
        try:
            _run(command, self._job, makes=exported)
            told: list[dict[str, Any]] = json.loads(_as_json(exported.read_text(encoding="utf-8")))
        except ValueError as error:
            raise StageError(
                f"What trtexec told by --{export} cannot be read",
                where=self._job["target"],
                why=str(error),
                hint=f"TensorRT {self._program.version} may write it in another form: please report it",
            ) from error
        finally:
            fed.unlink(missing_ok=True)
            exported.unlink(missing_ok=True)
        return told


def _as_json(text: str) -> str:
    """trtexec writes numbers that are none as C++ prints them."""
    return re.sub(r"(?<=[\s,\[])(-?)(nan|inf)\b", lambda word: NUMBERS[word[2]].format(word[1]), text)


NUMBERS = {"nan": "NaN", "inf": "{}Infinity"}


def _shape(job: dict[str, Any], batch: int) -> str:
    height, width, channels = job["image_shape"]
    sizes = (
        (batch, height, width, channels) if job["input"] == "uint8_nhwc" else (batch, channels, height, width)
    )
    return "x".join(map(str, sizes))


def _run(command: list[str], job: dict[str, Any], *, makes: Path) -> None:
    """Raises StageError with its own words if it fails, or says that it passed and left nothing."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(" ".join(command), done.stdout, sep="\n")
    if done.returncode or not makes.is_file():
        lines = [line for line in done.stdout.splitlines() if "[E]" in line] or done.stdout.splitlines()
        raise StageError(
            "trtexec failed on the device",
            where=job["target"],
            why="\n".join(lines[-LAST_LINES:]) or f"status {done.returncode}, {makes.name} was not written",
            hint="leave the target out of the device's targets",
        )
