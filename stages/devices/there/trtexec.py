"""TensorRT by its command-line program, for devices that have the SDK but not its Python package.

trtexec queues one inference while another runs. Its latency is copy in, computing and copy out of one
inference (samples/common/sampleReporting.cpp in NVIDIA/TensorRT), so the figures name the clock "trtexec".
TensorRT 11 reversed its defaults: without options it captures graphs and leaves copies out.
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
from stages.devices.requests import source_of
from stages.devices.there.trtexec_program import Program
from stages.measuring import latency
from stages.measuring.contention import Watch
from stages.runtimes.images import as_input
from stages.runtimes.tensorrt import options as tensorrt_options
from stages.statistics.steadiness import is_steady

LAST_LINES = 5


def build(program: Program, request: dict[str, Any], output: Path) -> dict[str, Any]:
    """Write `model.engine` and, if timings are kept, `timing.cache`.

    Args:
        program: the trtexec.
        request: see `stages.devices.requests`.
        output: the folder that gets them.

    Returns:
        `built_by` and `batches` (smallest, tuned for, largest).

    Raises:
        StageError: trtexec fails, or lacks an option that the profile asks for.
    """
    settings, engine = request["build"], output / "model.engine"
    batches = {name: settings[f"batch_{name}"] for name in ("min", "opt", "max")}
    command = [
        program.path,
        f"--onnx={request['onnx']}",
        f"--saveEngine={engine}",
        "--stronglyTyped",
        "--noTF32",
        "--skipInference",
        f"--memPoolSize=workspace:{settings['workspace_mb']}",
        f"--builderOptimizationLevel={settings['optimization_level']}",
        *(f"--{name}Shapes=input:{_shape(request, batch)}" for name, batch in batches.items()),
        *_options(request),
    ]
    timings = output / "timing.cache"
    earlier_timings = Path(request["timings"]) / f"trtexec-{program.version}.cache"
    if settings["timing_cache"]:
        if earlier_timings.is_file():
            timings.write_bytes(earlier_timings.read_bytes())
        command.append(f"--timingCacheFile={timings}")
    engine.unlink(missing_ok=True)
    _run(command, request, writes=engine)
    if timings.is_file():
        earlier_timings.parent.mkdir(parents=True, exist_ok=True)
        earlier_timings.write_bytes(timings.read_bytes())
    return {"built_by": f"trtexec {program.version}", "batches": list(batches.values())}


def _options(request: dict[str, Any]) -> list[str]:
    """Return further options of the build section. Raise StageError for the one that needs the package."""
    options = tensorrt_options.options_of("tensorrt", request["build"])
    if options.version_compatible:
        raise StageError(
            "trtexec builds no version-compatible engine here",
            where=f"{request['target']}, build.version_compatible",
            why="such an engine runs host code when it is loaded, and only the package can allow that",
            hint="install TensorRT's Python package on the device, or --set build.version_compatible=false",
        )
    levels = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}
    level = levels.get(options.hardware_compatible)
    return ["--refit"] * options.refit + [f"--hardwareCompatibilityLevel={level}"] * bool(level)


class TrtExecSession:
    """An engine run by trtexec, a process for every batch size."""

    clock = "trtexec"

    def __init__(self, request: dict[str, Any], folder: Path, program: Program) -> None:
        self._request, self._folder, self._program = request, folder, program
        self._source = source_of(request)
        settings = request["settings"]
        graph, transfers = settings["cuda_graph"], settings["transfers"]
        self._launch_options = program.launch_options(graph=graph, transfers=transfers)
        self.facts = {
            "version": program.version,
            "threads": 1,
            "transfers": "included" if transfers else "left out",
            "cuda_graph": graph,
            "run_by": "trtexec",
        }

    def sample(
        self,
        images: np.ndarray,
        settings: dict[str, Any],
        watch: Watch,  # noqa: ARG002 - the interface passes it
        beats: Beats,
    ) -> tuple[latency.Samples, None]:
        """Return the samples that trtexec exports.

        It reports no CPU time, so contention is not judged.
        """
        beats.phase("sampling by trtexec", detail=f"batch {len(images)}")
        entries = self._infer(
            images,
            "exportTimes",
            *self._launch_options,
            f"--warmUp={round(settings['warmup_s'] * 1000)}",
            f"--duration={max(settings['duration_s'], 1):g}",
            f"--iterations={settings['min_samples']}",
        )
        ns = np.asarray([round(entry["latencyMs"] * 1e6) for entry in entries], np.int64)
        samples = latency.Samples(
            ns=ns,
            cpu_ns=np.zeros_like(ns),
            steady=is_steady(ns),
            inner_loops=1,
            warmup=latency.Warmup(calls=0, seconds=settings["warmup_s"], steady=True),
            inferences=len(ns),
            seconds=round(float(ns.sum()) * 1e-9, 4),
            health={},
        )
        return samples, None

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return the logits, float32 (n, classes), of uint8 images (n, H, W, C)."""
        # Without the copies the outputs would not be brought back.
        launch = self._program.launch_options(graph=False, transfers=True)
        entries = self._infer(images, "exportOutput", *launch, "--warmUp=0", "--duration=0", "--iterations=1")
        values = next(entry["values"] for entry in entries if entry["name"] == "logits")
        return np.asarray(values, np.float32).reshape(len(images), -1)

    def _infer(self, images: np.ndarray, export: str, *options: str) -> list[dict[str, Any]]:
        """Run the engine on these images; return the entries of the file that the option `export` writes."""
        input_file, exported = self._folder / "input.bin", self._folder / f"{export}.json"
        as_input(images, self._source).tofile(input_file)
        command = [
            self._program.path,
            f"--loadEngine={self._folder / 'model.engine'}",
            f"--shapes=input:{_shape(self._request, len(images))}",
            f"--loadInputs=input:{input_file}",
            f"--{export}={exported}",
            *options,
        ]
        try:
            _run(command, self._request, writes=exported)
            entries: list[dict[str, Any]] = json.loads(_as_json(exported.read_text(encoding="utf-8")))
        except ValueError as error:
            raise StageError(
                f"The file that trtexec wrote for --{export} cannot be read",
                where=self._request["target"],
                why=str(error),
                hint=f"TensorRT {self._program.version} may write it in another form: please report it",
            ) from error
        finally:
            input_file.unlink(missing_ok=True)
            exported.unlink(missing_ok=True)
        return entries


def _as_json(text: str) -> str:
    """Write NaN and infinity like JSON readers expect them: trtexec writes them like C++ does."""
    return re.sub(r"(?<=[\s,\[])(-?)(nan|inf)\b", lambda word: NUMBERS[word[2]].format(word[1]), text)


NUMBERS = {"nan": "NaN", "inf": "{}Infinity"}


def _shape(request: dict[str, Any], batch: int) -> str:
    height, width, channels = request["image_shape"]
    channels_last = request["input"] == "uint8_nhwc"
    sizes = (batch, height, width, channels) if channels_last else (batch, channels, height, width)
    return "x".join(map(str, sizes))


def _run(command: list[str], request: dict[str, Any], *, writes: Path) -> None:
    """Run trtexec. Raise StageError with its messages if it fails, or passes without writing the file."""
    done = subprocess.run(  # noqa: S603 - the device's own trtexec
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    print(" ".join(command), done.stdout, sep="\n")
    if done.returncode or not writes.is_file():
        lines = [line for line in done.stdout.splitlines() if "[E]" in line] or done.stdout.splitlines()
        raise StageError(
            "trtexec failed on the device",
            where=request["target"],
            why="\n".join(lines[-LAST_LINES:]) or f"status {done.returncode}, {writes.name} was not written",
            hint="leave the target out of the device's targets",
        )
