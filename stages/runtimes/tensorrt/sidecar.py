"""`engine.json` beside an engine: what built it and for what, checked before the SDK sees the engine.

A serialized engine is native code, so the SDK gets only the very engine that was built for this system, this
version and this GPU. Light.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import StageError
from pipeline.hashing import hash_bytes, hash_file
from pipeline.json_files import write_json
from stages.runtimes.tensorrt.build import Specification

ENGINE = "model.engine"
SIDECAR = "engine.json"

REBUILD = "kdpipe build PROFILE, on the machine that is to run it"

AMPERE = (8, 0)


@dataclass(frozen=True)
class Machine:
    """The machine that would run the engine.

    Attributes:
        package: `tensorrt` or `tensorrt_rtx`.
        version: of the package.
        capability: the GPU's compute capability, e.g. 8.7.
        system: e.g. linux.
        architecture: e.g. x86_64.
    """

    package: str
    version: str
    capability: str
    system: str
    architecture: str


def write(
    folder: Path,
    specification: Specification,
    built: Mapping[str, Any],
    device: Mapping[str, Any],
    **fields: Any,
) -> dict[str, Any]:
    """Write the sidecar of the engine in `folder`; return it.

    Args:
        folder: of the engine.
        specification: that it was built from.
        built: the builder's facts.
        device: the GPU (`name`, `compute_capability`); empty without one.
        fields: further fields of the sidecar.
    """
    engine = (folder / ENGINE).read_bytes()
    options = specification.options
    sidecar = {
        "schema_version": 1,
        "package": specification.package,
        **built,
        **fields,
        "gpu": device.get("name"),
        "compute_capability": device.get("compute_capability"),
        "hardware_compatible": options.hardware_compatible,
        "version_compatible": options.version_compatible,
        "refit": options.refit,
        "rtx_compute_capabilities": list(options.compute_capabilities),
        "optimization_level": specification.optimization_level,
        "workspace_mb": specification.workspace_mb,
        "size_bytes": len(engine),
        "sha256": hash_bytes(engine),
    }
    write_json(folder / SIDECAR, sidecar)
    return sidecar


def read(folder: Path, machine: Machine) -> dict[str, Any]:
    """Read the sidecar of an engine, and check that the engine fits a machine.

    Raises:
        StageError: the engine is not the one that was built, or was built for another system, another version
            of the package or another GPU.
    """
    try:
        sidecar: dict[str, Any] = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
        digest = hash_file(folder / ENGINE)
    except (OSError, ValueError) as error:
        raise StageError(
            "the engine or its sidecar cannot be read", where=folder.name, why=str(error), hint=REBUILD
        ) from error
    engine = f"{folder.name}/{ENGINE}"
    if digest != sidecar["sha256"]:
        raise StageError(
            "the engine is not the one that was built",
            where=engine,
            why=f"found SHA-256 {digest}, expected {sidecar['sha256']}",
            hint=REBUILD,
        )
    if (sidecar["system"], sidecar["architecture"]) != (machine.system, machine.architecture):
        raise StageError(
            "the engine was built for another system",
            where=engine,
            why=f"found {sidecar['system']} on {sidecar['architecture']}, here is {machine.system} on "
            f"{machine.architecture}",
            hint=REBUILD,
        )
    if sidecar["package"] != machine.package or not _version_fits(sidecar, machine.version):
        kind = "version-compatible " if sidecar.get("version_compatible") else ""
        built_by = f"{kind}{sidecar['package']} {sidecar['version']}"
        raise StageError(
            "the engine was built by another version of TensorRT",
            where=engine,
            why=f"found {built_by}, here is {machine.package} {machine.version}",
            hint=REBUILD,
        )
    if machine.package == "tensorrt" and not _gpu_fits(sidecar, machine.capability):
        level = sidecar.get("hardware_compatible", "none")
        raise StageError(
            "the engine was built for another GPU",
            where=engine,
            why=f"found compute capability {sidecar['compute_capability']} ({sidecar['gpu']}, "
            f"build.hardware_compatible: {level}), this GPU has {machine.capability}",
            hint=REBUILD,
        )
    return sidecar


def _version_fits(sidecar: Mapping[str, Any], version: str) -> bool:
    """Return whether the version is the engine's, or, if it is version-compatible, a later minor one."""
    built = str(sidecar["version"])
    if not sidecar.get("version_compatible"):
        return built == version
    current, minimum = numbers(version), numbers(built)
    return current[:1] == minimum[:1] and current >= minimum


def _gpu_fits(sidecar: Mapping[str, Any], capability: str) -> bool:
    """Return whether the compute capability is the engine's; for `ampere_plus`, any from 8.0 on."""
    built = sidecar["compute_capability"]
    if built and sidecar.get("hardware_compatible") == "ampere_plus":
        return min(numbers(built), numbers(capability)) >= AMPERE
    return bool(built == capability)


def numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers, up to the first part that is not a number.

    Example:
        >>> numbers("10.12.0.36")
        (10, 12, 0, 36)
    """
    parts: list[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)
