"""ONNX Runtime on the CPU. Light until something is built or loaded.

A target is one ONNX file with the graph optimisation already stored in it. On the networks that
this was tried on (ResNet, MobileNet v2 and v3, ViT), `extended` is as fast as optimising at load
time, gives the same logits (bit for bit for floats, to within INT8 rounding else), and makes INT8
files up to a tenth smaller; what suits only one processor is still done when the file is loaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError
from pipeline.stage import Progress
from stages.measuring.machine import usable_cores
from stages.runtimes.base import Ability, Recipe, Source
from stages.runtimes.identity import DISTRIBUTIONS, installed_versions
from stages.runtimes.settings import BuildSettings

if TYPE_CHECKING:
    import numpy as np

PROVIDER = "CPUExecutionProvider"
FILE = "model.onnx"
LEVELS = {
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
PRECISION_KEY = "kdpipe.effective_precision"
"""In the file's metadata, so that a loaded file tells it without being searched."""

_INTEGER_OPERATORS = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize", "QAttention")


class OnnxRuntime:
    """Builds and runs targets `onnxruntime-fp32` and `onnxruntime-int8`."""

    name = "onnxruntime"
    precisions: tuple[str, ...] = ("fp32", "int8")
    not_offered = {  # noqa: RUF012 - never changed
        "fp16": "ONNX Runtime computes no fp16 on CPUs: it would convert to fp32 and back at each operator"
    }
    recipe: Recipe = "x86"
    distributions = DISTRIBUTIONS["onnxruntime"]

    def ability_to_build(self) -> Ability:
        if importlib.util.find_spec("onnxruntime") is None:
            return Ability(False, "the onnxruntime package is not installed", "pip install onnxruntime")
        return Ability(True, versions=installed_versions(self.distributions))

    def ability_to_run(self) -> Ability:
        return self.ability_to_build()

    def build(
        self, source: Source, output: Path, settings: BuildSettings, progress: Progress, work: Path
    ) -> dict[str, Any]:
        """Writes `model.onnx` with the graph optimisation of the settings stored in it."""
        import onnx
        import onnxruntime

        level = settings.onnxruntime_optimization
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[level])
        options.optimized_model_filepath = str(output / FILE)
        options.log_severity_level = 3
        try:
            onnxruntime.InferenceSession(str(source.onnx), options, providers=[PROVIDER])
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
        kept = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, {**kept, PRECISION_KEY: effective})
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
            facts["integer_operators"] = integer
        return facts

    def load(self, folder: Path, source: Source, threads: int) -> OnnxRuntimeSession:
        return OnnxRuntimeSession(folder / FILE, source, threads)


class OnnxRuntimeSession:
    """One loaded file, on the CPU, with exactly `threads` threads."""

    def __init__(self, file: Path, source: Source, threads: int) -> None:
        import onnxruntime

        # A spinning pool with more threads than cores only takes them from itself.
        spinning = threads <= usable_cores()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=[PROVIDER])
        except Exception as error:  # the binding raises a class of its own for each status code
            raise StageError(
                "ONNX Runtime cannot load a built target",
                where=file.name,
                why=str(error).replace(str(file), file.name),
                mend="kdpipe build PROFILE",
            ) from error
        providers = self._session.get_providers()
        if providers[0] != PROVIDER:
            raise StageError(
                "ONNX Runtime chose another provider than the one asked for",
                where=file.name,
                why=f"found {providers[0]}, expected {PROVIDER}",
                mend="pip install --force-reinstall onnxruntime",
            )
        self._source = source
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.facts: dict[str, Any] = {
            "effective_precision": metadata.get(PRECISION_KEY, source.precision),
            "provider": providers[0],
            "threads": threads,
            "spinning": spinning,
        }

    def logits(self, images: np.ndarray) -> np.ndarray:
        from stages.runtimes.images import as_input

        result: np.ndarray = self._session.run(["logits"], {self._input: as_input(images, self._source)})[0]
        return result

    def timed(self, images: np.ndarray) -> Callable[[], None]:
        from stages.runtimes.images import as_input

        binding = self._session.io_binding()
        # The array stays referenced by the closure: the binding holds its bare address.
        bound = as_input(images, self._source)
        binding.bind_cpu_input(self._input, bound)
        for output in self._outputs:
            binding.bind_output(output, "cpu")
        run = self._session.run_with_iobinding

        def call(bound: np.ndarray = bound) -> None:
            run(binding)

        return call


def _refused(source: Source, error: Exception) -> StageError:
    return StageError(
        "ONNX Runtime refuses the file",
        where=source.onnx.name,
        why=str(error).replace(str(source.onnx), source.onnx.name),
        mend="export again with another operator set: --set export.opset=20",
    )


RUNTIME = OnnxRuntime()
