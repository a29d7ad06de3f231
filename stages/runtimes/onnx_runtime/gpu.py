"""What ONNX Runtime's two GPU providers share: ability, the provider's options, the sidecar.

Light until something is built or loaded.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from pipeline.errors import StageError
from pipeline.hashing import hash_file
from pipeline.json_files import write_json
from pipeline.machine import installed_versions
from stages.runtimes.base import Ability
from stages.runtimes.onnx_runtime import gpu_trial as onnx_runtime_trial

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

FILE = "model.onnx"
SIDECAR = "provider.json"
"""Which provider runs the file with which options, and for TensorRT the digests of its engines."""

INSTALL = "pip uninstall --yes onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]>=1.27'"
"""Both packages write the same folder, so the one for CPUs has to go first."""

GPU_MEND = "run this on a machine with an NVIDIA GPU and its driver (nvidia-smi must list the GPU)"
REBUILD = "kdpipe build PROFILE, on the machine that is to run it"


def ability(provider: str) -> Ability:
    """Whether this provider computes here: a network of one operator is run on it in a subprocess."""
    if importlib.util.find_spec("onnxruntime") is None:
        return Ability(False, "the onnxruntime-gpu package is not installed", INSTALL)
    told = onnx_runtime_trial.ask(provider)
    versions = {"onnxruntime-gpu": str(told["version"])} if provider in told.get("available", ()) else {}
    if versions and provider == TENSORRT:
        versions |= installed_versions(("tensorrt",))  # brings the libraries that the provider loads
    if not told.get("error"):
        return Ability(True, versions=versions)
    # The package is there and it is the driver that is missing: installing fixes nothing.
    driver = told["device"].get("error")
    if versions and driver:
        return Ability(False, f"{told['error']}; {driver}", GPU_MEND, versions)
    return Ability(False, told["error"], INSTALL, versions)


def write_sidecar(folder: Path, provider: str, options: dict[str, str]) -> None:
    """options: without anything of this machine's folders."""
    device = onnx_runtime_trial.ask(provider).get("device", {})
    sidecar = {
        "schema_version": 1,
        "provider": provider,
        "options": options,
        "onnxruntime": onnx_runtime_trial.ask(provider)["version"],
        "gpu": device.get("name"),
        "compute_capability": device.get("compute_capability"),
        "engines": engine_digests(folder),
    }
    write_json(folder / SIDECAR, sidecar)


def read_sidecar(folder: Path, version: str, capability: str) -> dict[str, Any]:
    """The sidecar of a target that fits this machine; checked before any engine is loaded, because a
    serialised engine is code.

    Raises StageError if an engine is not one that was built, or was built for another version or GPU.
    """
    try:
        sidecar: dict[str, Any] = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(
            "the target's sidecar cannot be read",
            where=f"{folder.name}/{SIDECAR}",
            why=str(error),
            hint=REBUILD,
        ) from error
    found = engine_digests(folder)
    if found != sidecar["engines"]:
        raise StageError(
            "the engines are not the ones that were built",
            where=folder.name,
            why=f"found {found}, expected {sidecar['engines']}",
            hint=REBUILD,
        )
    built_for = (sidecar["onnxruntime"], sidecar["compute_capability"])
    if found and built_for != (version, capability):
        raise StageError(
            "the engines were built for another GPU or ONNX Runtime",
            where=folder.name,
            why=f"found ONNX Runtime {built_for[0]} and compute capability {built_for[1]} "
            f"({sidecar['gpu']}), here are {version} and {capability}",
            hint=REBUILD,
        )
    return sidecar


def engine_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each of TensorRT's engines in a target's folder, by name."""
    return {file.name: hash_file(file) for file in sorted(folder.glob("*.engine"))}
