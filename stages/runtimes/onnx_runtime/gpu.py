"""The parts that ONNX Runtime's two GPU providers share: ability, options, the sidecar.

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
"""Both packages write the same folder, so the package for CPUs has to be removed first."""

GPU_HINT = "run this on a machine with an NVIDIA GPU and its driver (nvidia-smi must list the GPU)"
REBUILD = "kdpipe build PROFILE, on the machine that is to run it"


def ability(provider: str) -> Ability:
    """Return whether this provider computes here: it runs a network of one operator in a subprocess."""
    if importlib.util.find_spec("onnxruntime") is None:
        return Ability(False, "the onnxruntime-gpu package is not installed", INSTALL)
    answer = onnx_runtime_trial.ask(provider)
    versions = {"onnxruntime-gpu": str(answer["version"])} if provider in answer.get("available", ()) else {}
    if versions and provider == TENSORRT:
        versions |= installed_versions(("tensorrt",))  # has the libraries that the provider loads
    if not answer.get("error"):
        return Ability(True, versions=versions)
    # The package is installed and the driver is missing: installing fixes nothing.
    driver = answer["device"].get("error")
    if versions and driver:
        return Ability(False, f"{answer['error']}; {driver}", GPU_HINT, versions)
    return Ability(False, answer["error"], INSTALL, versions)


def write_sidecar(folder: Path, provider: str, options: dict[str, str]) -> None:
    """Write the sidecar of a target.

    Args:
        folder: of the target, with its engines.
        provider: that runs it.
        options: of the provider, without paths of this machine.
    """
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
    """Read and check the sidecar of a target.

    It is checked before any engine is loaded, because a serialized engine is code.

    Args:
        folder: of the target.
        version: of ONNX Runtime here.
        capability: the GPU's compute capability, e.g. 8.7.

    Raises:
        StageError: an engine is not the one that was built, or was built for another version or GPU.
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
    digests = engine_digests(folder)
    if digests != sidecar["engines"]:
        raise StageError(
            "the engines are not the ones that were built",
            where=folder.name,
            why=f"found {digests}, expected {sidecar['engines']}",
            hint=REBUILD,
        )
    built_for = (sidecar["onnxruntime"], sidecar["compute_capability"])
    if digests and built_for != (version, capability):
        raise StageError(
            "the engines were built for another GPU or ONNX Runtime",
            where=folder.name,
            why=f"found ONNX Runtime {built_for[0]} and compute capability {built_for[1]} "
            f"({sidecar['gpu']}), here are {version} and {capability}",
            hint=REBUILD,
        )
    return sidecar


def engine_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each of TensorRT's engines in a target's folder, by name."""
    return {file.name: hash_file(file) for file in sorted(folder.glob("*.engine"))}
