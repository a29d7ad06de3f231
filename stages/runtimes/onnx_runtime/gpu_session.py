"""Runs a target by one of ONNX Runtime's GPU providers, with PyTorch's CUDA tensors as its buffers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from pipeline.errors import MachineCannot, StageError
from stages.onnx_files.session_options import session_options
from stages.runtimes.base import Source
from stages.runtimes.gpu_binding import Bound, call_of, new_stream, page_locked_like, timing
from stages.runtimes.images import as_input
from stages.runtimes.on_gpu import GpuTiming
from stages.runtimes.onnx_runtime import gpu_trial as onnx_runtime_trial
from stages.runtimes.onnx_runtime.gpu import CUDA, FILE, INSTALL, TENSORRT, read_sidecar
from stages.runtimes.onnx_runtime.session import open_on_provider

GRAPH_OPTION = {CUDA: "enable_cuda_graph", TENSORRT: "trt_cuda_graph_enable"}

HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul", "QLinear", "FusedConv", "FusedGemm", "FusedMatMul")
"""Operators that have to run on the GPU. Others may stay on the CPU, where both providers put the arithmetic
of shapes on purpose; `session.disable_cpu_ep_fallback` would refuse every network that has any."""

DTYPES = {
    "tensor(float)": (torch.float32, np.float32),
    "tensor(float16)": (torch.float16, np.float16),
}


class OnnxRuntimeGpuSession:
    """One file on the GPU, on a stream of its own.

    `timed` covers the copy of the images to the GPU, the inference and the copy of the outputs back, from
    and to page-locked host memory, until the stream has done all of it. `timed_on_gpu` leaves the copies
    out or replays a CUDA graph where that is asked for, and times the parts on the GPU.

    Attributes:
        facts: `effective_precision`, `provider`, `device`, `compute_capability`, `version`, `nodes` (by
            provider), `threads`, and of the last timing `transfers` and `cuda_graph`.

    Raises:
        MachineCannot: PyTorch finds no CUDA device.
        StageError: the target does not fit this machine, or ONNX Runtime refuses it.
    """

    def __init__(self, folder: Path, source: Source, provider: str) -> None:
        if not torch.cuda.is_available():
            raise MachineCannot(
                f"ONNX Runtime's {provider} needs an NVIDIA GPU",
                where=folder.name,
                why="PyTorch finds no CUDA device",
                hint="nvidia-smi must list the GPU, and PyTorch must be a build with CUDA",
            )
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        self._options = read_sidecar(folder, onnxruntime.__version__, capability)["options"]
        self._folder, self._source, self._provider = folder, source, provider
        self._stream = new_stream()
        self._session = self._open({})
        self._input = self._session.get_inputs()[0].name
        self.facts: dict[str, Any] = {
            "effective_precision": "int8+fp32" if source.precision == "int8" else source.precision,
            "provider": provider,
            "device": torch.cuda.get_device_name(),
            "compute_capability": capability,
            "version": onnxruntime.__version__,
            "nodes": assigned_nodes(self._session, provider, folder),
            "threads": 1,
            "transfers": "included",
            "cuda_graph": False,
        }

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return the logits, float32 (n, classes), of uint8 images (n, H, W, C)."""
        bound = self._bind(self._session, images)
        call_of(bound, bound.run, self._stream, transfers=True)()
        return bound.results["logits"].numpy().astype(np.float32)

    def timed(self, images: np.ndarray) -> Callable[[], None]:
        """Return a call that runs these images, copies included."""
        return self.timed_on_gpu(images, cuda_graph=False, transfers=True).call

    def timed_on_gpu(self, images: np.ndarray, *, cuda_graph: bool, transfers: bool) -> GpuTiming:
        """See `stages.runtimes.on_gpu.GpuSession`."""
        # A graph belongs to the addresses of its capture, so each binding has a session of its own.
        session = self._open({GRAPH_OPTION[self._provider]: "1"}) if cuda_graph else self._session
        bound = self._bind(session, images)
        if cuda_graph:
            self._capture(bound)
        self.facts["transfers"] = "included" if transfers else "excluded"
        self.facts["cuda_graph"] = cuda_graph
        return timing(bound, bound.run, self._stream, transfers=transfers)

    def _open(self, more: dict[str, str]) -> onnxruntime.InferenceSession:
        stream = {"has_user_compute_stream": "1", "user_compute_stream": str(self._stream.cuda_stream)}
        return _open_session(self._folder, self._provider, {**self._options, **stream, **more})

    def _bind(self, session: onnxruntime.InferenceSession, images: np.ndarray) -> Bound:
        """Put these images into page-locked memory and on the GPU, and make room for the outputs on both."""
        inputs = as_input(images, self._source)
        host = torch.from_numpy(inputs).pin_memory()
        device = torch.empty_like(host, device="cuda")
        device.copy_(host)
        binding = session.io_binding()
        binding.bind_input(self._input, "cuda", 0, inputs.dtype.type, inputs.shape, device.data_ptr())
        outputs: dict[str, torch.Tensor] = {}
        for output in session.get_outputs():
            of_torch, of_numpy = DTYPES[output.type]
            shape = (len(images), *output.shape[1:])
            outputs[output.name] = torch.empty(shape, dtype=of_torch, device="cuda")
            address = outputs[output.name].data_ptr()
            binding.bind_output(output.name, "cuda", 0, of_numpy, shape, address)
        options = onnxruntime.RunOptions()
        # The call waits for the stream once, after the outputs are copied.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        torch.cuda.synchronize()
        run = partial(session.run_with_iobinding, binding, options)
        return Bound(host, device, outputs, page_locked_like(outputs), run)

    def _capture(self, bound: Bound) -> None:
        """Run once, which captures the graph; every later run replays it."""
        try:
            with torch.cuda.stream(self._stream):
                bound.run()
            self._stream.synchronize()
        except Exception as error:  # the binding raises a class of its own for each status code
            raise StageError(
                "the inference cannot be captured as a CUDA graph",
                where=self._folder.name,
                why=str(error).splitlines()[0],
                hint="--set measure.cuda_graph=false",
            ) from error


def nodes_by_provider(folder: Path, provider: str, options: dict[str, str]) -> dict[str, int]:
    """Open the file once, for the build: TensorRT writes its engines into the folder.

    Returns:
        How many nodes each provider runs.

    Raises:
        StageError: the provider is missing, or does not take a layer with weights.
    """
    return assigned_nodes(_open_session(folder, provider, options), provider, folder)


def assigned_nodes(session: onnxruntime.InferenceSession, provider: str, folder: Path) -> dict[str, int]:
    """Return how many nodes each provider runs.

    Raises:
        StageError: an operator that `provider` has to run is on another one.
    """
    counts: dict[str, int] = {}
    misplaced: set[str] = set()
    for part in session.get_provider_graph_assignment_info():
        kinds = [node.op_type for node in part.get_nodes()]
        counts[part.ep_name] = counts.get(part.ep_name, 0) + len(kinds)
        if part.ep_name != provider:
            misplaced |= {f"{kind} on {part.ep_name}" for kind in kinds if kind.startswith(HEAVY)}
    if misplaced:
        raise StageError(
            f"{provider} does not take all layers of this network",
            where=folder.name,
            why=f"found {', '.join(sorted(misplaced))}, expected all on {provider}",
            hint="leave this target out",
        )
    return dict(sorted(counts.items()))


def _open_session(folder: Path, provider: str, options: dict[str, str]) -> onnxruntime.InferenceSession:
    onnx_runtime_trial.load_libraries(provider)
    providers = [(provider, options)]
    if provider == TENSORRT:
        caching = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder)}
        # Nodes that TensorRT leaves out run by CUDA, so that values do not travel to the CPU and back.
        shared = {key: value for key, value in options.items() if key.endswith("user_compute_stream")}
        providers = [(TENSORRT, {**options, **caching}), (CUDA, shared)]
    settings = session_options(threads=1)
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return open_on_provider(
        folder / FILE,
        settings,
        providers,
        hint=INSTALL,
        reason=lambda: str(onnx_runtime_trial.ask(provider).get("error", "")),
    )
