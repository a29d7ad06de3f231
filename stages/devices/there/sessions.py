"""A target loaded on the device, inputs and outputs bound as the line binds them: the same figures.

Needs numpy and the target's runtime; TensorRT is run through the CUDA runtime library, without torch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import machine
from pipeline.heartbeat import Beats
from stages.devices.there import engines
from stages.devices.there.session import Session, Unavailable, as_input, sample_calls
from stages.measuring import latency
from stages.measuring.contention import Watch

PROVIDER = "CPUExecutionProvider"


def load(job: dict[str, Any], folder: Path, threads: int) -> Session:
    """Raises Unavailable if the runtime is not there, or refuses the file."""
    if job["runtime"] == "onnxruntime":
        return OnnxRuntime(job, folder, threads)
    if job["runtime"] == "openvino":
        return OpenVino(job, folder, threads)
    if job["runtime"] in ("tensorrt", "tensorrt_rtx"):
        return engines.load(job, folder)
    raise Unavailable(f"no runtime {job['runtime']} is known on devices")


class OnnxRuntime:
    """One file on the CPU, with exactly `threads` threads."""

    clock = "time.perf_counter_ns"

    def __init__(self, job: dict[str, Any], folder: Path, threads: int) -> None:
        onnxruntime = _imported("onnxruntime")
        spinning = threads <= machine.usable_cores()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
        file = next(folder.glob("*.onnx"))
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=[PROVIDER])
        except Exception as error:  # the binding raises a class of its own for each status code
            raise Unavailable(
                f"ONNX Runtime {onnxruntime.__version__} refuses the file: "
                + str(error).replace(str(file), file.name)
            ) from error
        self._job = job
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.facts = {
            "version": onnxruntime.__version__,
            "provider": self._session.get_providers()[0],
            "threads": threads,
            "spinning": spinning,
        }

    def sample(
        self, images: np.ndarray, settings: dict[str, Any], watch: Watch, beats: Beats
    ) -> tuple[latency.Samples, float]:
        binding = self._session.io_binding()
        bound = as_input(images, self._job)  # the binding holds its bare address
        binding.bind_cpu_input(self._input, bound)
        for output in self._outputs:
            binding.bind_output(output, "cpu")
        run = self._session.run_with_iobinding
        return sample_calls(lambda: run(binding), settings, watch, beats)

    def logits(self, images: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._session.run(["logits"], {self._input: as_input(images, self._job)})[0]
        return found


class OpenVino:
    """One compiled model on the CPU, one stream, tuned for latency."""

    clock = "time.perf_counter_ns"

    def __init__(self, job: dict[str, Any], folder: Path, threads: int) -> None:
        openvino = self._openvino = _imported("openvino")
        config: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        hint = {"fp32": "f32", "bf16": "bf16"}.get(job["precision"])
        if hint:
            config["INFERENCE_PRECISION_HINT"] = hint
        try:
            self._compiled = openvino.Core().compile_model(str(next(folder.glob("*.xml"))), "CPU", config)
        except RuntimeError as error:
            raise Unavailable(f"OpenVINO {openvino.__version__} refuses the file: {error}") from error
        found = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if job["precision"] == "bf16" and found != "bf16":
            raise Unavailable(f"the processor does not compute bfloat16: OpenVINO would run it in {found}")
        self._job = job
        self.facts = {
            "version": openvino.__version__,
            "device": "CPU",
            "threads": int(self._compiled.get_property("INFERENCE_NUM_THREADS")),
        }

    def sample(
        self, images: np.ndarray, settings: dict[str, Any], watch: Watch, beats: Beats
    ) -> tuple[latency.Samples, float]:
        request = self._compiled.create_infer_request()
        bound = self._openvino.Tensor(as_input(images, self._job), shared_memory=True)
        request.set_input_tensor(bound)

        def call() -> None:
            request.start_async()
            request.wait()

        return sample_calls(call, settings, watch, beats)

    def logits(self, images: np.ndarray) -> np.ndarray:
        results = self._compiled({0: as_input(images, self._job)})
        return np.array(results[self._compiled.output("logits")], np.float32)


def _imported(name: str) -> Any:
    # OpenVINO reports its use to its makers when it is imported, unless this module is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return __import__(name)
    except ImportError as error:
        raise Unavailable(f"{name} is not installed on the device ({error})") from None
