"""ONNX Runtime on the CPU. Light until something is built or loaded.

A target is one ONNX file with the graph optimization already stored in it. On ResNet, MobileNet v2 and v3,
and ViT, `extended` is as fast as optimizing at load time, and gives the same logits: bit for bit for floats,
to within rounding for INT8. It makes INT8 files up to a tenth smaller. Optimizations for one kind of
processor are still done when the file is loaded.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError
from pipeline.machine import installed_versions
from pipeline.stage import Progress
from stages.runtimes.base import Ability, Recipe, Source
from stages.runtimes.identity import DISTRIBUTIONS, IN_PLACE_OF_ONNXRUNTIME
from stages.runtimes.settings import BuildSettings

if TYPE_CHECKING:
    from stages.runtimes.onnx_runtime.session import OnnxRuntimeSession

FILE = "model.onnx"

_FLOAT_LAYERS = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
_INTEGER_OPERATORS = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize", "QAttention")


class OnnxRuntime:
    """Builds and runs targets `onnxruntime-fp32` and `onnxruntime-int8`."""

    name = "onnxruntime"
    precisions: tuple[str, ...] = ("fp32", "int8")
    not_offered = {  # noqa: RUF012 - never changed
        "fp16": "ONNX Runtime computes no fp16 on CPUs: it would convert to fp32 and back at each operator",
        "bf16": "ONNX Runtime has no bf16 convolution for CPUs; openvino-bf16 computes it on CPUs that can",
    }
    recipe: Recipe = "x86"
    distributions = DISTRIBUTIONS["onnxruntime"]

    def ability_to_build(self) -> Ability:
        """Return whether the package is installed."""
        if importlib.util.find_spec("onnxruntime") is None:
            return Ability(False, "the onnxruntime package is not installed", "pip install onnxruntime")
        versions = list(installed_versions((*self.distributions, *IN_PLACE_OF_ONNXRUNTIME)).values())
        # A bundle pins these versions: the package for CPUs is enough there, whichever is installed here.
        return Ability(True, versions={"onnxruntime": versions[0]} if versions else {})

    def ability_to_run(self) -> Ability:
        """Return the same as for building."""
        return self.ability_to_build()

    def build(
        self,
        source: Source,
        output: Path,
        settings: BuildSettings,
        progress: Progress,
        work: Path,  # noqa: ARG002 - the interface passes it
    ) -> dict[str, Any]:
        """Write `model.onnx` with the graph optimization of the settings stored in it.

        Raises:
            StageError: ONNX Runtime refuses the file.
        """
        import onnx
        import onnxruntime

        from stages.onnx_files.session_options import CPU, session_options
        from stages.runtimes.onnx_runtime.session import PRECISION_KEY

        level = settings.onnxruntime_optimization
        options = session_options(optimization=level, optimized_file=output / FILE)
        try:
            onnxruntime.InferenceSession(str(source.onnx), options, providers=[CPU])
        except Exception as error:  # the binding raises a class of its own for each status code
            raise _refused(source, error) from error
        model = onnx.load(str(output / FILE))
        integer = sum(node.op_type.startswith(_INTEGER_OPERATORS) for node in model.graph.node)
        effective = source.precision
        if source.precision == "int8" and not integer:
            effective = "fp32"
            progress.note(
                "onnxruntime-int8: no operator of this file runs in integers; expect the speed of fp32"
            )
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, {**metadata, PRECISION_KEY: effective})
        onnx.save(model, str(output / FILE))
        facts: dict[str, Any] = {
            "optimization": level,
            "operators": len(model.graph.node),
            "effective_precision": effective,
            "portable": "this kind of processor only"
            if level == "all"
            else "any CPU, this or a later ONNX Runtime",
        }
        if source.precision == "int8":
            kinds = [node.op_type for node in model.graph.node]
            facts["integer_operators"] = integer
            facts["float_layers"] = sum(kind in _FLOAT_LAYERS for kind in kinds)
            facts["conversions"] = sum(kind in _CONVERSIONS for kind in kinds)
        return facts

    def load(self, folder: Path, source: Source, threads: int) -> OnnxRuntimeSession:
        """Load `model.onnx` with `threads` threads."""
        from stages.runtimes.onnx_runtime.session import OnnxRuntimeSession

        return OnnxRuntimeSession(folder / FILE, source, threads)


def _refused(source: Source, error: Exception) -> StageError:
    return StageError(
        "ONNX Runtime refuses the file",
        where=source.onnx.name,
        why=str(error).replace(str(source.onnx), source.onnx.name),
        hint="export again with another operator set: --set export.opset=20",
    )


RUNTIME = OnnxRuntime()
