"""Sessions of OpenVINO on the CPU.

Light: it needs numpy and OpenVINO only, because the program that works on devices carries it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import StageError
from stages.runtimes.base import Source
from stages.runtimes.images import as_input
from stages.runtimes.openvino.package import import_openvino

PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16"}
"""The float type that a session asks for. Without it, processors with AMX compute in bfloat16: fast, but not
the fp32 of the target."""

_SHORT_TYPES = {"float": "fp32", "f32": "fp32", "float16": "fp16", "f16": "fp16", "bfloat16": "bf16"}

MULTIPLYING_LAYERS = ("Convolution", "FullyConnected", "MatMul", "Deconvolution")


class OpenVinoSession:
    """One compiled model on the CPU device, one stream, tuned for latency.

    Attributes:
        facts: `effective_precision`, `device`, `threads`; of int8 also `integer_layers`, of bf16 also
            `bf16_layers`, each "N of M" layers that multiply.

    Raises:
        StageError: OpenVINO refuses the file, or does not compute a bf16 target in bfloat16 here.
    """

    def __init__(self, file: Path, source: Source, threads: int) -> None:
        self._openvino = import_openvino()
        config: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if source.precision in PRECISION_HINTS:
            config["INFERENCE_PRECISION_HINT"] = PRECISION_HINTS[source.precision]
        try:
            self._compiled = self._openvino.Core().compile_model(str(file), "CPU", config)
        except RuntimeError as error:
            raise StageError(
                "OpenVINO cannot load a built target",
                where=file.name,
                why=str(error).replace(str(file), file.name),
                hint="kdpipe build PROFILE",
            ) from error
        self._source = source
        self._request = self._compiled.create_infer_request()
        self._logits = self._compiled.output("logits")
        hint = self._compiled.get_property("INFERENCE_PRECISION_HINT")
        float_type = _SHORT_TYPES.get(_type_name(hint), _type_name(hint))
        self.facts: dict[str, Any] = {
            "effective_precision": float_type,
            "device": self._compiled.get_property("EXECUTION_DEVICES")[0],
            "threads": int(self._compiled.get_property("INFERENCE_NUM_THREADS")),
        }
        if source.precision == "int8":
            integer, multiplying = _count_layers(self._compiled, "i8", "u8")
            self.facts["effective_precision"] = f"int8+{float_type}" if integer else float_type
            self.facts["integer_layers"] = f"{integer} of {multiplying}"
        elif source.precision == "bf16":
            short, multiplying = _count_layers(self._compiled, "bf16")
            self.facts["bf16_layers"] = f"{short} of {multiplying}"
            if float_type != "bf16" or (multiplying and not short):
                raise _not_bf16(file.name, float_type, self.facts["bf16_layers"])

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return the logits, float32 (n, classes), of uint8 images (n, H, W, C)."""
        results = self._request.infer({0: as_input(images, self._source)}, share_inputs=True)
        return np.array(results[self._logits], np.float32)

    def timed(self, images: np.ndarray) -> Callable[[], None]:
        """Return a call that runs these images, the input bound."""
        request = self._compiled.create_infer_request()
        bound = self._openvino.Tensor(as_input(images, self._source), shared_memory=True)
        request.set_input_tensor(bound)
        # The asynchronous pair goes straight to the runtime; `infer` would copy the outputs into
        # Python dictionaries on every call.
        start, wait = request.start_async, request.wait

        def call(bound: Any = bound) -> None:  # noqa: ARG001 - keeps the tensor alive
            start()
            wait()

        return call


def _type_name(hint: Any) -> str:
    return str(hint.get_type_name()) if hasattr(hint, "get_type_name") else str(hint)


def _not_bf16(where: str, float_type: str, layers: str) -> StageError:
    return StageError(
        "OpenVINO does not compute this target in bfloat16 here",
        where=where,
        why=f"asked for bf16, it reads back {float_type}, with {layers} layers in bf16",
        hint="run it on a processor with AVX512-BF16, AMX or Arm's BF16, or take openvino-fp32",
    )


def _count_layers(compiled: Any, *types: str) -> tuple[int, int]:
    """Return how many of the layers that multiply run in one of these types, and how many there are."""
    multiplying = chosen = 0
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        kind = str(info["layerType"].astype(str)) if "layerType" in info else ""
        if kind in MULTIPLYING_LAYERS:
            multiplying += 1
            chosen += str(info["runtimePrecision"].astype(str)).lower() in types
    return chosen, multiplying
