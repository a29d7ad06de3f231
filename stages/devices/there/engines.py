"""TensorRT on the device: the engine is built where it runs, by the Python API or else by `trtexec`."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.hashing import hash_bytes
from pipeline.heartbeat import Beats
from pipeline.json_files import write_json
from stages.devices.requests import source_of
from stages.devices.there import cuda, facts, trtexec, trtexec_program
from stages.devices.there.sampling import DeviceSession, Unavailable, sample_calls
from stages.measuring import latency
from stages.measuring.contention import Watch
from stages.runtimes import probe
from stages.runtimes.images import as_input
from stages.runtimes.tensorrt import options as tensorrt_options
from stages.runtimes.tensorrt import process as tensorrt_process
from stages.runtimes.tensorrt import timings as tensorrt_timings
from stages.runtimes.tensorrt.build import Specification
from stages.runtimes.tensorrt.loaded_engine import LoadedEngine

ENGINE = "model.engine"
TIMINGS = "timing.cache"


def build(request: dict[str, Any], output: Path, beats: Beats) -> dict[str, Any]:
    """Build the engine into `output`.

    Args:
        request: see `stages.devices.requests`.
        output: the folder that gets `model.engine` and `engine.json`.
        beats: reports the progress.

    Returns:
        The content of `engine.json`, and `runs_why_not`: why the engine cannot run here, or None.

    Raises:
        Unavailable: nothing here can build it.
        StageError: the builder failed; with its own messages.
    """
    package = request["runtime"]
    # A builder is asked for its progress, but its steps take from no time to many minutes.
    beats.phase("building the engine", 100.0, "%", by_cpu=True)
    abilities = probe.ask(package)
    if abilities.get("builds"):
        built = _build_by_package(request, output, abilities, beats)
    elif package == "tensorrt" and (program := facts.trtexec()):
        built = {**trtexec.build(trtexec_program.inspect(program), request, output), "runs_why_not": None}
    else:
        why = abilities.get("error") or abilities.get("builds_why_not")
        addition = " and there is no trtexec" if package == "tensorrt" else ""
        raise Unavailable(f"{why}{addition}")
    engine = (output / ENGINE).read_bytes()
    sidecar = {
        "schema_version": 1,
        "package": package,
        **{name: value for name, value in built.items() if name != "runs_why_not"},
        "precision": request["precision"],
        "gpu": abilities.get("device", {}).get("name"),
        "compute_capability": abilities.get("device", {}).get("compute_capability"),
        "size_bytes": len(engine),
        "sha256": hash_bytes(engine),
    }
    write_json(output / "engine.json", sidecar)
    return {**sidecar, "runs_why_not": built["runs_why_not"]}


def load(request: dict[str, Any], folder: Path) -> DeviceSession:
    """Load the engine that `build` left in `folder`, in what built it."""
    if probe.ask(request["runtime"]).get("runs"):
        return EngineSession(request, folder)
    return trtexec.TrtExecSession(request, folder, trtexec_program.inspect(str(facts.trtexec())))


class _BuildProgress:
    """Passes a builder's progress on as beats."""

    def __init__(self, beats: Beats) -> None:
        self._beats = beats

    def update(
        self,
        done: float,
        total: float,
        unit: str = "",  # noqa: ARG002 - the interface passes it
        **figures: float | str,
    ) -> None:
        """See `pipeline.stage.Progress`."""
        self._beats.step(done, total, detail=str(figures.get("phase", "")))

    def note(self, text: str) -> None:
        """See `pipeline.stage.Progress`."""
        print(text)


def _build_by_package(
    request: dict[str, Any], output: Path, abilities: dict[str, Any], beats: Beats
) -> dict[str, Any]:
    """Build by the Python package, like the line does.

    Timings of this GPU, driver and version are kept for the next build.
    """
    settings, package = request["build"], request["runtime"]
    device = abilities.get("device", {})
    identity = tensorrt_timings.identity(package, abilities)
    folder = Path(request["timings"])
    folder.mkdir(parents=True, exist_ok=True)
    timings = folder / f"{identity}.cache"
    keeps_timings = package == "tensorrt" and settings["timing_cache"] and identity
    specification = Specification(
        package=package,
        engine=str(output / ENGINE),
        timings=str(timings) if keeps_timings else "",
        batches=(settings["batch_min"], settings["batch_opt"], settings["batch_max"]),
        workspace_mb=settings["workspace_mb"],
        optimization_level=settings["optimization_level"],
        device="name" in device,
        options=tensorrt_options.options_of(package, settings),
    )
    built = tensorrt_process.run(
        specification,
        Path(request["onnx"]).read_bytes(),
        label=request["target"],
        where=request["target"],
        progress=_BuildProgress(beats),
    )
    if keeps_timings and timings.is_file():
        (output / TIMINGS).write_bytes(timings.read_bytes())
    why_not = None if abilities.get("runs") else str(abilities.get("runs_why_not") or device.get("error"))
    return {"built_by": f"{package} {abilities['version']}", **built, "runs_why_not": why_not}


class EngineSession:
    """An engine run through TensorRT's Python API; copies are part of the time, like in the line."""

    clock = "time.perf_counter_ns"

    def __init__(self, request: dict[str, Any], folder: Path) -> None:
        trt = importlib.import_module(request["runtime"])
        # Of a version-compatible engine the profile agreed to the host code.
        host_code = bool(request["build"]["version_compatible"])
        serialized = (folder / ENGINE).read_bytes()
        self._engine = LoadedEngine(trt, serialized, request["target"], host_code=host_code)
        self._source = source_of(request)
        self._cuda = cuda.Cuda()
        self._bound: tuple[Callable[[], None], dict[str, np.ndarray]] | None = None
        self.facts = {"version": trt.__version__, "threads": 1, "transfers": "included", "cuda_graph": False}

    def sample(
        self, images: np.ndarray, settings: dict[str, Any], watch: Watch, beats: Beats
    ) -> tuple[latency.Samples, float]:
        """See `DeviceSession`."""
        call, _ = self._bind(as_input(images, self._source))
        return sample_calls(call, settings, watch, beats)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """See `DeviceSession`."""
        call, arrays = self._bind(as_input(images, self._source))
        call()
        return arrays["logits"].astype(np.float32)

    def _bind(self, images: np.ndarray) -> tuple[Callable[[], None], dict[str, np.ndarray]]:
        """Return a call that runs these images, and the page-locked arrays of the input and the outputs."""
        engine, device = self._engine, self._cuda
        if self._bound and self._bound[1][engine.input].shape == images.shape:
            # Test images are many: memory is allocated once for them all.
            self._bound[1][engine.input][...] = images
            return self._bound
        arrays: dict[str, np.ndarray] = {}
        addresses: dict[str, ctypes.c_void_p] = {}

        def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
            arrays[name] = device.page_locked(shape, dtype)
            addresses[name] = device.allocate(arrays[name].nbytes)
            return int(addresses[name].value or 0)

        enqueue = engine.bind(images.shape, allocate)
        arrays[engine.input][...] = images

        def call() -> None:
            device.copy_in(addresses[engine.input], arrays[engine.input])
            enqueue(device.stream)
            for name in engine.outputs:
                device.copy_out(arrays[name], addresses[name])
            device.wait()

        self._bound = call, arrays
        return self._bound
