"""TensorRT on the device: the engine is built where it runs, by the Python API or else by `trtexec`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import StageError
from pipeline.hashing import hash_bytes
from pipeline.heartbeat import Beats
from pipeline.json_files import write_json
from stages.devices.there import cuda, facts, session, trtexec, trtexec_program
from stages.measuring import latency
from stages.measuring.contention import Watch
from stages.runtimes import probe
from stages.runtimes.tensorrt import options as tensorrt_options
from stages.runtimes.tensorrt import process as tensorrt_process
from stages.runtimes.tensorrt import timings as tensorrt_timings
from stages.runtimes.tensorrt.build import Specification

ENGINE = "model.engine"
TIMINGS = "timing.cache"


def build(job: dict[str, Any], output: Path, beats: Beats) -> dict[str, Any]:
    """Builds the engine into `output`; what was built, by what, and `runs_why_not` (null if it runs here).

    Raises Unavailable where nothing here can build it, StageError with the builder's own messages.
    """
    package = job["runtime"]
    # A builder is asked for its progress, but its steps take from no time to many minutes.
    beats.phase("building the engine", 100.0, "%", by_cpu=True)
    told = probe.ask(package)
    if told.get("builds"):
        built = _by_python(job, output, told, beats)
    elif package == "tensorrt" and (program := facts.trtexec()):
        built = {**trtexec.build(trtexec_program.inspect(program), job, output), "runs_why_not": None}
    else:
        why = told.get("error") or told.get("builds_why_not")
        more = " and there is no trtexec" if package == "tensorrt" else ""
        raise session.Unavailable(f"{why}{more}")
    engine = (output / ENGINE).read_bytes()
    sidecar = {
        "schema_version": 1,
        "package": package,
        **{name: value for name, value in built.items() if name != "runs_why_not"},
        "precision": job["precision"],
        "gpu": told.get("device", {}).get("name"),
        "compute_capability": told.get("device", {}).get("compute_capability"),
        "size_bytes": len(engine),
        "sha256": hash_bytes(engine),
    }
    write_json(output / "engine.json", sidecar)
    return {**sidecar, "runs_why_not": built["runs_why_not"]}


def load(job: dict[str, Any], folder: Path) -> session.Session:
    """The engine that `build` left in `folder`, run by what built it."""
    if probe.ask(job["runtime"]).get("runs"):
        return TensorRt(job, folder)
    return trtexec.TrtExec(job, folder, trtexec_program.inspect(str(facts.trtexec())))


class _Building:
    """Passes a builder's progress on as beats."""

    def __init__(self, beats: Beats) -> None:
        self._beats = beats

    def update(self, done: float, total: float, unit: str = "", **figures: float | str) -> None:
        self._beats.step(done, total, detail=str(figures.get("phase", "")))

    def note(self, text: str) -> None:
        print(text)


def _by_python(job: dict[str, Any], output: Path, told: dict[str, Any], beats: Beats) -> dict[str, Any]:
    """Builds by the package, as the line does; timings of this GPU, driver and version are kept for the
    next build."""
    settings, package = job["build"], job["runtime"]
    device = told.get("device", {})
    options = tensorrt_options.options_of(package, settings)
    identity = tensorrt_timings.identity(package, told)
    kept = Path(job["timings"])
    kept.mkdir(parents=True, exist_ok=True)
    timings = kept / f"{identity}.cache"
    keeps = package == "tensorrt" and settings["timing_cache"] and identity
    specification = Specification(
        package=package,
        engine=str(output / ENGINE),
        timings=str(timings) if keeps else "",
        batches=(settings["batch_min"], settings["batch_opt"], settings["batch_max"]),
        workspace_mb=settings["workspace_mb"],
        optimization_level=settings["optimization_level"],
        device="name" in device,
        options=options,
    )
    onnx = Path(job["onnx"])
    built = tensorrt_process.run(
        specification,
        onnx.read_bytes(),
        label=job["target"],
        where=job["target"],
        progress=_Building(beats),
    )
    if keeps and timings.is_file():
        (output / TIMINGS).write_bytes(timings.read_bytes())
    why_not = None if told.get("runs") else str(told.get("runs_why_not") or device.get("error"))
    return {"built_by": f"{package} {told['version']}", **built, "runs_why_not": why_not}


class TensorRt:
    """An engine run through TensorRT's Python API; transfers are part of the time, as in the line."""

    clock = "time.perf_counter_ns"

    def __init__(self, job: dict[str, Any], folder: Path) -> None:
        trt = __import__(job["runtime"])
        self._trt, self._job = trt, job
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        if job["build"]["version_compatible"]:  # whose host code the profile agreed to
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine((folder / ENGINE).read_bytes())
        if self._engine is None:
            raise session.Unavailable("TensorRT refuses the engine that was built here")
        self._context = self._engine.create_execution_context()
        self._cuda = cuda.Cuda()
        self._bound: tuple[Callable[[], None], dict[str, np.ndarray]] | None = None
        self._names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self.facts = {"version": trt.__version__, "threads": 1, "transfers": "included", "cuda_graph": False}

    def sample(
        self, images: np.ndarray, settings: dict[str, Any], watch: Watch, beats: Beats
    ) -> tuple[latency.Samples, float]:
        call, _ = self._bind(session.as_input(images, self._job))
        return session.sample_calls(call, settings, watch, beats)

    def logits(self, images: np.ndarray) -> np.ndarray:
        call, results = self._bind(session.as_input(images, self._job))
        call()
        return results["logits"].astype(np.float32)

    def _bind(self, images: np.ndarray) -> tuple[Callable[[], None], dict[str, np.ndarray]]:
        """A call that runs these images, and the pinned host arrays that then hold the outputs."""
        context, device = self._context, self._cuda
        is_input = {
            name: self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT for name in self._names
        }
        (name_in,) = [name for name in self._names if is_input[name]]
        if self._bound and self._bound[1][name_in].shape == images.shape:
            self._bound[1][name_in][...] = images  # test images are many: memory is taken once for them all
            return self._bound
        context.set_input_shape(name_in, images.shape)
        hosts: dict[str, np.ndarray] = {}
        places: dict[str, ctypes.c_void_p] = {}
        for name in self._names:
            kind = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
            hosts[name] = device.pinned(tuple(context.get_tensor_shape(name)), kind)
            places[name] = device.allocate(hosts[name].nbytes)
            context.set_tensor_address(name, places[name].value)
        hosts[name_in][...] = images
        outputs = [name for name in self._names if not is_input[name]]

        def call() -> None:
            device.copy_in(places[name_in], hosts[name_in])
            if not context.execute_async_v3(device.stream):
                raise StageError("TensorRT could not run the engine", where=self._job["target"])
            for name in outputs:
                device.copy_out(hosts[name], places[name])
            device.wait()

        self._bound = call, hosts
        return self._bound
