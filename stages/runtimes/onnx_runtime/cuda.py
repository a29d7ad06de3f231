"""ONNX Runtime on an NVIDIA GPU by its CUDA provider. Light until something is built or loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.stage import Progress
from stages.runtimes.base import Ability, Recipe, Source
from stages.runtimes.identity import DISTRIBUTIONS
from stages.runtimes.onnx_runtime import gpu as onnx_runtime_gpu
from stages.runtimes.onnx_runtime.gpu import CUDA
from stages.runtimes.settings import BuildSettings

if TYPE_CHECKING:
    from stages.runtimes.onnx_runtime.gpu_session import OnnxRuntimeGpuSession

OPTIONS = {"use_tf32": "0"}
"""TF32 keeps ten bits of a product's fraction: fast, but not the fp32 of the target."""


class OnnxRuntimeCuda:
    """Builds and runs targets `onnxruntime_cuda-fp32` and `onnxruntime_cuda-fp16`."""

    name = "onnxruntime_cuda"
    precisions: tuple[str, ...] = ("fp32", "fp16")
    not_offered = {  # noqa: RUF012 - never changed
        "bf16": "ONNX Runtime's CUDA provider has no bf16 convolution",
        "int8": "ONNX Runtime's CUDA provider has no INT8 convolution: it would compute in fp32",
    }
    recipe: Recipe = "signed"
    distributions = DISTRIBUTIONS["onnxruntime_cuda"]

    def ability_to_build(self) -> Ability:
        """Return whether the CUDA provider computes here."""
        return onnx_runtime_gpu.ability(CUDA)

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
        """Write `model.onnx`, for fp16 with the types in the graph, and `provider.json`.

        The graph is optimized when it is loaded: the provider's fusions are not stored.

        Raises:
            StageError: the provider is missing, or does not take a layer with weights.
        """
        import onnx

        from stages.runtimes.onnx_runtime.gpu_session import nodes_by_provider
        from stages.runtimes.tensorrt.family import prepare

        model, facts = prepare(source, settings, progress.note)
        onnx.save(model, str(output / onnx_runtime_gpu.FILE))
        onnx_runtime_gpu.write_sidecar(output, CUDA, OPTIONS)
        nodes = nodes_by_provider(output, CUDA, OPTIONS)
        return {**facts, "nodes": nodes, "portable": "NVIDIA GPUs, this or a later ONNX Runtime"}

    def load(
        self,
        folder: Path,
        source: Source,
        threads: int,  # noqa: ARG002 - the interface passes it
    ) -> OnnxRuntimeGpuSession:
        """Load `model.onnx` on the GPU."""
        from stages.runtimes.onnx_runtime.gpu_session import OnnxRuntimeGpuSession

        return OnnxRuntimeGpuSession(folder, source, CUDA)


RUNTIME = OnnxRuntimeCuda()
