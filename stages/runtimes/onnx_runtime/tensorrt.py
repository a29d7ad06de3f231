"""ONNX Runtime on an NVIDIA GPU by its TensorRT provider. Light until something is built or loaded.

The network is strongly typed: the provider's own fp16 and INT8 switches stay off, and it computes in the
types of the graph.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError
from pipeline.machine import gpu_facts
from pipeline.stage import Progress
from stages.runtimes.base import Ability, Recipe, Source
from stages.runtimes.identity import DISTRIBUTIONS
from stages.runtimes.onnx_runtime import gpu as onnx_runtime_gpu
from stages.runtimes.onnx_runtime.gpu import TENSORRT
from stages.runtimes.settings import BuildSettings

if TYPE_CHECKING:
    from stages.runtimes.onnx_runtime.gpu_session import OnnxRuntimeGpuSession


class OnnxRuntimeTensorRt:
    """Builds and runs targets `onnxruntime_tensorrt-fp32`, `-fp16` and `-int8`."""

    name = "onnxruntime_tensorrt"
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8")
    not_offered = {  # noqa: RUF012 - never changed
        "bf16": "kdpipe was not tested with bf16 in ONNX Runtime's TensorRT provider; use tensorrt-bf16"
    }
    recipe: Recipe = "signed"
    distributions = DISTRIBUTIONS["onnxruntime_tensorrt"]

    def ability_to_build(self) -> Ability:
        """Return whether the TensorRT provider computes here."""
        return onnx_runtime_gpu.ability(TENSORRT)

    def ability_to_run(self) -> Ability:
        """Return the same as for building."""
        return self.ability_to_build()

    def build(
        self, source: Source, output: Path, settings: BuildSettings, progress: Progress, work: Path
    ) -> dict[str, Any]:
        """Write `model.onnx`, TensorRT's engines for it and `provider.json`.

        Raises:
            StageError: the provider builds no engine, or does not take a layer with weights.
        """
        import onnx

        from stages.runtimes.onnx_runtime.gpu_session import nodes_by_provider
        from stages.runtimes.tensorrt.family import prepare

        model, facts = prepare(source, settings, progress.note)
        onnx.save(model, str(output / onnx_runtime_gpu.FILE))
        options = profile_options(model.graph.input[0].name, source, settings)
        progress.update(0, 1, "engines", target=f"{self.name}-{source.precision}")
        timings = _timing_options(work) if settings.timing_cache else {}
        nodes = nodes_by_provider(output, TENSORRT, {**options, **timings})
        engines = onnx_runtime_gpu.engine_digests(output)
        if not engines:
            raise StageError(
                "ONNX Runtime's TensorRT provider built no engine",
                where=source.onnx.name,
                why=f"its nodes went to {', '.join(nodes)}",
                hint="leave this target out, or use tensorrt-fp32, whose error names what TensorRT refuses",
            )
        onnx_runtime_gpu.write_sidecar(output, TENSORRT, options)
        return {
            **facts,
            "nodes": nodes,
            "engines": len(engines),
            "batch_min": settings.batch_min,
            "batch_max": settings.batch_max,
            "strongly_typed": True,
            "reproducible": False,
            "portable": "this GPU model and exactly this ONNX Runtime and TensorRT",
        }

    def load(
        self,
        folder: Path,
        source: Source,
        threads: int,  # noqa: ARG002 - the interface passes it
    ) -> OnnxRuntimeGpuSession:
        """Load `model.onnx` and its engines on the GPU."""
        from stages.runtimes.onnx_runtime.gpu_session import OnnxRuntimeGpuSession

        return OnnxRuntimeGpuSession(folder, source, TENSORRT)


def profile_options(name: str, source: Source, settings: BuildSettings) -> dict[str, str]:
    """Return the provider's options.

    They have one profile over the batches of the settings, so that no batch within them causes another build.
    """
    height, width, channels = source.image_shape
    image = (height, width, channels) if source.input == "uint8_nhwc" else (channels, height, width)

    def shape(batch: int) -> str:
        return f"{name}:{'x'.join(map(str, (batch, *image)))}"

    smallest, tuned, largest = settings.batches
    return {
        "trt_profile_min_shapes": shape(smallest),
        "trt_profile_opt_shapes": shape(tuned),
        "trt_profile_max_shapes": shape(largest),
        "trt_max_workspace_size": str(settings.workspace_mb * 2**20),
        "trt_builder_optimization_level": str(settings.optimization_level),
    }


def _timing_options(work: Path) -> dict[str, str]:
    """Return the options of the timing cache; all targets of a build share it, drivers do not."""
    folder = work / f"onnxruntime-timings-{re.sub(r'[^0-9.]+', '_', gpu_facts()['driver'])}"
    folder.mkdir(parents=True, exist_ok=True)
    return {"trt_timing_cache_enable": "1", "trt_timing_cache_path": str(folder)}


RUNTIME = OnnxRuntimeTensorRt()
