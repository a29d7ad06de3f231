"""Runs a TensorRT engine, with PyTorch's CUDA tensors as its buffers."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import MachineCannot, StageError
from stages.runtimes.base import Source
from stages.runtimes.gpu_binding import Bound, call_of, page_locked_like, timing
from stages.runtimes.images import as_input
from stages.runtimes.on_gpu import GpuTiming
from stages.runtimes.tensorrt import sidecar as tensorrt_sidecar
from stages.runtimes.tensorrt.sidecar import ENGINE, Here


class TensorRtSession:
    """One engine with one execution context on a stream of its own.

    `timed` covers the copy of the images to the GPU, the inference and the copy of the outputs
    back, from and to page-locked host memory, until the stream has done all of it; `timed_on_gpu`
    leaves the copies out if asked, replays a CUDA graph if asked, and times the parts on the GPU.
    """

    def __init__(self, package: str, folder: Path, source: Source) -> None:
        if not torch.cuda.is_available():
            raise MachineCannot(
                "a TensorRT engine needs an NVIDIA GPU",
                where=folder.name,
                why="PyTorch finds no CUDA device",
                hint="nvidia-smi must list the GPU, and PyTorch must be a build with CUDA",
            )
        trt = importlib.import_module(package)
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        here = Here(package, trt.__version__, capability, platform.system().lower(), platform.machine())
        sidecar = tensorrt_sidecar.read(folder, here)
        self._messages: list[str] = []
        self._log = _logger(trt, self._messages)
        self._runtime = trt.Runtime(self._log)
        if sidecar.get("version_compatible"):
            # Its lean runtime is host code. The profile agreed to that (build.trust_engine_host_code), and
            # the engine is the very one that was built then.
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine((folder / ENGINE).read_bytes())
        if self._engine is None:
            raise self._fault("TensorRT cannot load the engine", folder)
        self._context = _context(trt, self._engine)
        if self._context is None:
            raise self._fault("TensorRT cannot make room for the engine on the GPU", folder)
        self._source = source
        self._stream = torch.cuda.Stream()
        self._folder = folder
        self._bound: torch.Tensor | None = None
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        is_input = {name: self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        (self._input,) = [name for name in names if is_input[name]]
        self._outputs = [name for name in names if not is_input[name]]
        self._types = {name: _torch_type(trt, self._engine.get_tensor_dtype(name)) for name in names}
        limits = sidecar["profile"][self._input]
        self._batches = (limits["min"][0], limits["max"][0])
        self.facts: dict[str, Any] = {
            "effective_precision": "int8+fp32" if source.precision == "int8" else source.precision,
            "device": torch.cuda.get_device_name(),
            "compute_capability": capability,
            "version": trt.__version__,
            "tuned_for_batch": limits["opt"][0],
            "threads": 1,
            "transfers": "included",
            "cuda_graph": False,
        }

    def logits(self, images: np.ndarray) -> np.ndarray:
        bound = self._bind(as_input(images, self._source))
        call_of(bound, bound.run, self._stream, transfers=True)()
        return bound.results["logits"].numpy().astype(np.float32)

    def timed(self, images: np.ndarray) -> Callable[[], None]:
        return self.timed_on_gpu(images, cuda_graph=False, transfers=True).call

    def timed_on_gpu(self, images: np.ndarray, *, cuda_graph: bool, transfers: bool) -> GpuTiming:
        bound = self._bind(as_input(images, self._source))
        run = self._captured(bound) if cuda_graph else bound.run
        self.facts["transfers"] = "included" if transfers else "excluded"
        self.facts["cuda_graph"] = cuda_graph
        return timing(bound, run, self._stream, transfers=transfers)

    def _bind(self, images: np.ndarray) -> Bound:
        """These images in page-locked memory and on the GPU, and room for the outputs on both."""
        smallest, largest = self._batches
        if not smallest <= len(images) <= largest:
            raise StageError(
                "the engine does not take this batch",
                where=self._folder.name,
                why=f"found {len(images)} images, expected {smallest} to {largest}",
                hint=f"--set build.batch_min={min(smallest, len(images))} "
                f"--set build.batch_max={max(largest, len(images))}",
            )
        context, stream = self._context, self._stream
        self._bound = None
        context.set_input_shape(self._input, images.shape)
        host = torch.from_numpy(images).pin_memory()
        device = torch.empty_like(host, device="cuda")
        device.copy_(host)
        outputs = {
            name: torch.empty(tuple(context.get_tensor_shape(name)), dtype=self._types[name], device="cuda")
            for name in self._outputs
        }
        results = page_locked_like(outputs)
        torch.cuda.synchronize()

        def run() -> None:
            if self._bound is not device:  # another binding of this engine came between
                context.set_input_shape(self._input, tuple(host.shape))
                context.set_tensor_address(self._input, device.data_ptr())
                for name, tensor in outputs.items():
                    context.set_tensor_address(name, tensor.data_ptr())
                self._bound = device
            if not context.execute_async_v3(stream.cuda_stream):
                raise self._fault("TensorRT could not run the engine", self._folder)

        return Bound(host, device, outputs, results, run)

    def _captured(self, bound: Bound) -> Callable[[], None]:
        """The inference as a CUDA graph. It runs once before, since TensorRT puts off work to then."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            bound.run()
        self._stream.synchronize()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                bound.run()
        except RuntimeError as error:
            raise StageError(
                "the engine cannot be captured as a CUDA graph",
                where=self._folder.name,
                why=str(error).splitlines()[0],
                hint="--set measure.cuda_graph=false",
            ) from error
        return graph.replay

    def _fault(self, what: str, folder: Path) -> StageError:
        why = "\n".join(self._messages[-5:]) or "it gave no reason"
        return StageError(
            what, where=folder.name, why=why, hint="kdpipe build PROFILE, on the machine that is to run it"
        )


def _context(trt: Any, engine: Any) -> Any:
    """An execution context; TensorRT for RTX is told to specialise its kernels at once, so that
    none is exchanged for another while it is being timed."""
    strategies = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if strategies is None:
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
    return engine.create_execution_context(config)


def _torch_type(trt: Any, kind: Any) -> torch.dtype:
    types = {
        "FLOAT": torch.float32,
        "HALF": torch.float16,
        "UINT8": torch.uint8,
        "INT8": torch.int8,
        "INT32": torch.int32,
        "INT64": torch.int64,
        "BOOL": torch.bool,
    }
    return types[str(kind).rpartition(".")[2]]


def _logger(trt: Any, messages: list[str]) -> Any:
    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                messages.append(message)

    return Log()
