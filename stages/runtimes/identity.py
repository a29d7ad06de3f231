"""The facts of this machine that a built target depends on. Light: standard library only.

Every plan reads them, so nothing is imported or started without need: versions come from the names of the
installed packages' folders, the GPU from the driver's own listing.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

from pipeline.machine import computes_bf16, gpu_facts, installed_versions

DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "ncnn": ("ncnn", "pnnx", "onnxruntime"),
    "onnxruntime": ("onnxruntime",),
    "onnxruntime_cuda": ("onnxruntime-gpu", "onnx"),
    "onnxruntime_tensorrt": ("onnxruntime-gpu", "tensorrt", "onnx"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "onnx"),
    "tensorrt_rtx": ("tensorrt-rtx", "onnx"),
}
"""Python distributions whose versions count for the files of a built-in runtime. `onnx` rewrites the graph
for TensorRT, `onnxruntime` folds its constants for ncnn."""

ON_GPU = ("onnxruntime_cuda", "onnxruntime_tensorrt", "tensorrt", "tensorrt_rtx")
"""Runtimes whose targets depend on the GPU and its driver."""

IN_PLACE_OF_ONNXRUNTIME = ("onnxruntime-gpu",)
"""Packages that bring the same module. One that is installed counts, because it may be the module that
runs."""

CUDA_DISTRIBUTIONS = (
    "torch",
    "nvidia-cudnn",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "nvidia-cuda-runtime",
    "nvidia-cuda-runtime-cu12",
    "nvidia-cuda-runtime-cu13",
)
"""Counted as well if they are installed. PyTorch's CUDA runs the built files: a package that is installed
because a target was not built must not meet that target's "not built" in the cache."""

_BF16_ON_CPU = "openvino-bf16"
"""Built only where the processor computes bfloat16: whether it does is part of the key."""


def build_machine(settings: Any) -> dict[str, str]:
    """Return, by name, the facts of this machine that the build stage's output depends on.

    Args:
        settings: has `targets`, each an object or a mapping with `name`, or the name itself.
    """
    runtimes = sorted(
        {_target_name(target).rpartition("-")[0] for target in getattr(settings, "targets", ())}
    )
    needed = {"onnxruntime"}  # the teacher's baseline is always built
    for runtime in runtimes:
        needed.update(DISTRIBUTIONS.get(runtime) or _plugin_distributions(runtime))
    facts = {"architecture": platform.machine(), "system": platform.system().lower()}
    if _BF16_ON_CPU in map(_target_name, getattr(settings, "targets", ())):
        facts["bf16"] = "computed" if computes_bf16() else "not computed"
    on_gpu = any(runtime in ON_GPU for runtime in runtimes)
    optional = (*IN_PLACE_OF_ONNXRUNTIME, *(CUDA_DISTRIBUTIONS if on_gpu else ()))
    versions = installed_versions((*needed, *optional))
    facts |= {name: versions.get(name, "not installed") for name in sorted(needed)}
    facts |= {name: versions[name] for name in optional if name in versions}
    if on_gpu:
        facts |= gpu_facts()
    return facts


def package_conflicts(versions: Mapping[str, str | None]) -> list[str]:
    """Return which installed packages do not go together, with the remedy, a sentence each.

    Args:
        versions: by distribution, its version; None where it is not installed.
    """
    if versions.get("onnxruntime") and versions.get("onnxruntime-gpu"):
        return [
            "onnxruntime and onnxruntime-gpu are both installed. They have the same folder, so the package "
            "installed last is used. For a GPU: pip uninstall --yes onnxruntime onnxruntime-gpu && "
            "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        ]
    return []


def _target_name(target: Any) -> str:
    if isinstance(target, str):
        return target
    return str(target["name"] if isinstance(target, dict) else target.name)


def _plugin_distributions(runtime: str) -> tuple[str, ...]:
    """Return the distributions of a third party's runtime; an unknown runtime is refused elsewhere."""
    from pipeline.errors import UsageError
    from stages.runtimes import registry

    try:
        return tuple(registry.get(runtime).distributions)
    except UsageError:
        return ()
