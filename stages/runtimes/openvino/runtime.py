"""OpenVINO on the CPU. Light until something is built or loaded."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import MachineCannot, StageError
from pipeline.machine import installed_versions
from pipeline.stage import Progress
from stages.runtimes.base import Ability, Recipe, Source
from stages.runtimes.identity import DISTRIBUTIONS
from stages.runtimes.settings import BuildSettings

if TYPE_CHECKING:
    import numpy as np

FILE = "model.xml"
INSTALL = "pip install 'kdpipe[openvino]'"


class OpenVino:
    """Builds and runs targets `openvino-fp32`, `openvino-bf16` and `openvino-int8`."""

    name = "openvino"
    precisions: tuple[str, ...] = ("fp32", "bf16", "int8")
    not_offered = {  # noqa: RUF012 - never changed
        "fp16": "OpenVINO computes fp16 on few CPUs and otherwise takes another type without saying so"
    }
    recipe: Recipe = "signed"
    distributions = DISTRIBUTIONS["openvino"]

    def ability_to_build(self) -> Ability:
        if importlib.util.find_spec("openvino") is None:
            return Ability(False, "the openvino package is not installed", INSTALL)
        try:
            import_openvino()
        except (ImportError, OSError) as error:
            return Ability(False, f"the openvino package cannot be imported: {error}", INSTALL)
        return Ability(True, versions=installed_versions(self.distributions))

    def ability_to_run(self) -> Ability:
        return self.ability_to_build()

    def build(
        self, source: Source, output: Path, settings: BuildSettings, progress: Progress, work: Path
    ) -> dict[str, Any]:
        """Writes `model.xml` and `model.bin`, weights as exact as in the source.

        For bf16 too: weights and activations become bf16 when the file is loaded, because every session
        asks for that. Raises MachineCannot for bf16 on a processor that has none.
        """
        openvino = import_openvino()
        if source.precision == "bf16":
            require_bf16(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        try:
            model = openvino.Core().read_model(str(source.onnx))
        except RuntimeError as error:
            raise StageError(
                "OpenVINO refuses the file",
                where=source.onnx.name,
                why=str(error).replace(str(source.onnx), source.onnx.name),
                hint="export again with another operator set: --set export.opset=20",
            ) from error
        model.set_friendly_name("model")
        if source.precision == "int8":
            _select_by_slice(model)
        _name_by_position(model)
        openvino.save_model(model, str(output / FILE), compress_to_fp16=False)
        return {
            "operators": len(model.get_ops()),
            "weights": "as in the source"
            + ("; rounded to bf16 when the file is loaded" if source.precision == "bf16" else ""),
            "portable": "any CPU, this or a later OpenVINO",
        }

    def load(self, folder: Path, source: Source, threads: int) -> OpenVinoSession:
        return OpenVinoSession(folder / FILE, source, threads)


class OpenVinoSession:
    """One compiled model on the CPU device, one stream, tuned for latency."""

    def __init__(self, file: Path, source: Source, threads: int) -> None:
        openvino = import_openvino()
        config: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if source.precision in HINTS:
            config["INFERENCE_PRECISION_HINT"] = HINTS[source.precision]
        try:
            self._compiled = openvino.Core().compile_model(str(file), "CPU", config)
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
        float_type = _SHORT.get(_type_name(hint), _type_name(hint))
        self.facts: dict[str, Any] = {
            "effective_precision": float_type,
            "device": self._compiled.get_property("EXECUTION_DEVICES")[0],
            "threads": int(self._compiled.get_property("INFERENCE_NUM_THREADS")),
        }
        if source.precision == "int8":
            integer, heavy = _layers_in(self._compiled, "i8", "u8")
            self.facts["effective_precision"] = f"int8+{float_type}" if integer else float_type
            self.facts["integer_layers"] = f"{integer} of {heavy}"
        elif source.precision == "bf16":
            short, heavy = _layers_in(self._compiled, "bf16")
            self.facts["bf16_layers"] = f"{short} of {heavy}"
            if float_type != "bf16" or (heavy and not short):
                raise _not_bf16(file.name, float_type, self.facts["bf16_layers"])

    def logits(self, images: np.ndarray) -> np.ndarray:
        import numpy as np

        from stages.runtimes.images import as_input

        results = self._request.infer({0: as_input(images, self._source)}, share_inputs=True)
        return np.array(results[self._logits], np.float32)

    def timed(self, images: np.ndarray) -> Callable[[], None]:
        from stages.runtimes.images import as_input

        request = self._compiled.create_infer_request()
        bound = import_openvino().Tensor(as_input(images, self._source), shared_memory=True)
        request.set_input_tensor(bound)
        # The asynchronous pair goes straight to the runtime; `infer` would copy the outputs into
        # Python dictionaries on every call.
        start, wait = request.start_async, request.wait

        def call(bound: Any = bound) -> None:
            start()
            wait()

        return call


HINTS = {"fp32": "f32", "bf16": "bf16"}
"""What is asked for by name. Without, processors with AMX take bfloat16: fast, but for fp32 not what was
asked for."""

_SHORT = {"float": "fp32", "f32": "fp32", "float16": "fp16", "f16": "fp16", "bfloat16": "bf16"}


def _type_name(hint: Any) -> str:
    return str(hint.get_type_name()) if hasattr(hint, "get_type_name") else str(hint)


def require_bf16(capabilities: Sequence[str]) -> None:
    """Raises MachineCannot unless the processor's capabilities, as OpenVINO lists them, have bfloat16."""
    if "BF16" not in capabilities:
        raise MachineCannot(
            "this processor does not compute bfloat16",
            why=f"OpenVINO lists {', '.join(capabilities)} and would run the target in fp32",
            hint="build on a processor with AVX512-BF16, AMX or Arm's BF16, or take openvino-fp32",
        )


def _not_bf16(where: str, found: str, layers: str) -> StageError:
    return StageError(
        "OpenVINO does not compute this target in bfloat16 here",
        where=where,
        why=f"asked for bf16, it reads back {found}, with {layers} layers in bf16",
        hint="run it on a processor with AVX512-BF16, AMX or Arm's BF16, or take openvino-fp32",
    )


def _layers_in(compiled: Any, *types: str) -> tuple[int, int]:
    """How many of the layers that multiply run in one of these types, and how many there are."""
    heavy = chosen = 0
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        kind = str(info["layerType"].astype(str)) if "layerType" in info else ""
        if kind in ("Convolution", "FullyConnected", "MatMul", "Deconvolution"):
            heavy += 1
            chosen += str(info["runtimePrecision"].astype(str)).lower() in types
    return chosen, heavy


def _select_by_slice(model: Any) -> None:
    """Writes `x[:, 0]` (a vision transformer's class token) as a slice in place of a gather.

    OpenVINO's INT8 pass takes the scale of a layer norm before it for a dequantization and fails
    to carry that over a gather of a single index; over a slice it can.
    """
    import numpy as np
    from openvino import opset13 as operators

    for gather in model.get_ordered_ops():
        if gather.get_type_name() != "Gather" or not gather.get_output_element_type(0).is_real():
            continue
        index, axis = (gather.input_value(place).get_node() for place in (1, 2))
        if index.get_type_name() != "Constant" or axis.get_type_name() != "Constant" or index.shape:
            continue
        at, along = int(index.data), np.array([int(axis.data)])
        end = at + 1 if at != -1 else np.iinfo(np.int64).max
        piece = operators.slice(gather.input_value(0), np.array([at]), np.array([end]), np.array([1]), along)
        chosen = operators.squeeze(piece, along)
        chosen.set_friendly_name(gather.get_friendly_name())
        gather.output(0).replace(chosen.output(0))
    model.validate_nodes_and_infer_types()


def _name_by_position(model: Any) -> None:
    """OpenVINO numbers unnamed operators as they come in the life of the process; equal work has
    to give equal files."""
    for position, operator in enumerate(model.get_ordered_ops()):
        kind = operator.get_type_name()
        if re.fullmatch(rf"{re.escape(kind)}_\d+", operator.get_friendly_name()):
            operator.set_friendly_name(f"{kind}_{position}")


def import_openvino() -> Any:
    """The package, imported without its telemetry.

    Merely importing openvino sends a usage event if the package openvino_telemetry, on which it
    depends, can be imported; openvino does without if it cannot.
    """
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


RUNTIME = OpenVino()
