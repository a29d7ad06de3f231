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
from stages.runtimes.gpu_binding import Bound, call_of, new_stream, page_locked_like, timing
from stages.runtimes.images import as_input
from stages.runtimes.on_gpu import GpuTiming
from stages.runtimes.tensorrt import sidecar as tensorrt_sidecar
from stages.runtimes.tensorrt.loaded_engine import LoadedEngine
from stages.runtimes.tensorrt.sidecar import ENGINE, Machine


class TensorRtSession:
    """One engine with one execution context on a stream of its own.

    `timed` covers the copy of the images to the GPU, the inference and the copy of the outputs
    back, from and to page-locked host memory, until the stream has done all of it. `timed_on_gpu`
    leaves the copies out or replays a CUDA graph where that is asked for, and times the parts on the GPU.

    Attributes:
        facts: `effective_precision`, `device`, `compute_capability`, `version`, `tuned_for_batch`, `threads`,
            and of the last timing `transfers` and `cuda_graph`.

    Raises:
        MachineCannot: PyTorch finds no CUDA device.
        StageError: the engine does not fit this machine, or TensorRT refuses it.
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
        machine = Machine(package, trt.__version__, capability, platform.system().lower(), platform.machine())
        sidecar = tensorrt_sidecar.read(folder, machine)
        # The lean runtime of a version-compatible engine is host code. The profile agreed to that
        # (build.trust_engine_host_code), and the engine is the very one that was built then.
        self._engine = LoadedEngine(
            trt,
            (folder / ENGINE).read_bytes(),
            folder.name,
            host_code=bool(sidecar.get("version_compatible")),
        )
        self._source = source
        self._stream = new_stream()
        self._folder = folder
        limits = sidecar["profile"][self._engine.input]
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
        """Return the logits, float32 (n, classes), of uint8 images (n, H, W, C)."""
        bound = self._bind(as_input(images, self._source))
        call_of(bound, bound.run, self._stream, transfers=True)()
        return bound.results["logits"].numpy().astype(np.float32)

    def timed(self, images: np.ndarray) -> Callable[[], None]:
        """Return a call that runs these images, copies included."""
        return self.timed_on_gpu(images, cuda_graph=False, transfers=True).call

    def timed_on_gpu(self, images: np.ndarray, *, cuda_graph: bool, transfers: bool) -> GpuTiming:
        """See `stages.runtimes.on_gpu.GpuSession`."""
        bound = self._bind(as_input(images, self._source))
        run = self._captured(bound) if cuda_graph else bound.run
        self.facts["transfers"] = "included" if transfers else "excluded"
        self.facts["cuda_graph"] = cuda_graph
        return timing(bound, run, self._stream, transfers=transfers)

    def _bind(self, images: np.ndarray) -> Bound:
        """Put these images into page-locked memory and on the GPU, and make room for the outputs on both."""
        smallest, largest = self._batches
        if not smallest <= len(images) <= largest:
            raise StageError(
                "the engine does not take this batch",
                where=self._folder.name,
                why=f"found {len(images)} images, expected {smallest} to {largest}",
                hint=f"--set build.batch_min={min(smallest, len(images))} "
                f"--set build.batch_max={max(largest, len(images))}",
            )
        host = torch.from_numpy(images).pin_memory()
        device = torch.empty_like(host, device="cuda")
        device.copy_(host)
        outputs: dict[str, torch.Tensor] = {}

        def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
            if name == self._engine.input:
                return device.data_ptr()
            of_torch = torch.from_numpy(np.empty(0, dtype)).dtype
            outputs[name] = torch.empty(shape, dtype=of_torch, device="cuda")
            return outputs[name].data_ptr()

        enqueue = self._engine.bind(images.shape, allocate)
        results = page_locked_like(outputs)
        torch.cuda.synchronize()
        stream = self._stream.cuda_stream
        return Bound(host, device, outputs, results, lambda: enqueue(stream))

    def _captured(self, bound: Bound) -> Callable[[], None]:
        """Return the inference as a CUDA graph. It runs once before, since TensorRT puts off work to then."""
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
