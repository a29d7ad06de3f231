"""What a profile may ask of TensorRT's builder beside batches, and which package can do it. Light."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import StageError, UsageError

CLASSIC_ONLY = {
    "refit": "TensorRT for RTX compiles weights that can be exchanged only with a driver at hand",
    "version_compatible": "TensorRT for RTX does not come with the lean runtime that such an engine needs",
    "hardware_compatible": "TensorRT for RTX has no levels: build.rtx_compute_capabilities names its GPUs",
}
"""Settings that the builder of TensorRT for RTX refuses or passes over, and why."""

OFF = {"refit": False, "version_compatible": False, "hardware_compatible": "none"}

CURRENT = "CURRENT"


@dataclass(frozen=True)
class Options:
    """The flags of one build; `compute_capabilities` is empty for the package's own choice of GPUs."""

    refit: bool = False
    version_compatible: bool = False
    hardware_compatible: str = "none"
    compute_capabilities: tuple[str, ...] = ()


def options_of(package: str, settings: Mapping[str, Any]) -> Options:
    """What the profile's `build` section asks of this package.

    Raises StageError, before anything is built, for what the package cannot do.
    """
    if package == "tensorrt_rtx":
        faults = refused(settings)
        if faults:
            raise StageError(
                "TensorRT for RTX cannot build this engine",
                where=", ".join(faults),
                why="; ".join(faults.values()),
                hint=" ".join(f"--set {key}={_off(key)}" for key in faults) + ", or use tensorrt targets",
            )
        return Options(compute_capabilities=tuple(settings["rtx_compute_capabilities"]))
    return Options(
        refit=settings["refit"],
        version_compatible=settings["version_compatible"],
        hardware_compatible=settings["hardware_compatible"],
    )


def refused(settings: Mapping[str, Any]) -> dict[str, str]:
    """The keys that TensorRT for RTX cannot follow, each with the reason."""
    return {f"build.{key}": why for key, why in CLASSIC_ONLY.items() if settings[key] != OFF[key]}


def check_targets(runtimes: Iterable[str], settings: Mapping[str, Any]) -> None:
    """Raises UsageError for settings that none of the profile's runtimes can follow.

    Where the classic SDK's targets stand beside those for RTX, only the latter are not built.
    """
    named = set(runtimes)
    faults = refused(settings) if "tensorrt_rtx" in named and "tensorrt" not in named else {}
    if faults:
        raise UsageError(
            "no target of the profile can follow these settings",
            where=", ".join(faults),
            why="; ".join(faults.values()),
            hint=" ".join(f"--set {key}={_off(key)}" for key in faults) + ", or add a tensorrt target",
        )


def apply(trt: Any, config: Any, options: Options) -> None:
    """Sets the builder's configuration; raises StageError for what this version does not know."""
    if options.refit:
        config.set_flag(_member(trt.BuilderFlag, "REFIT", "build.refit"))
    if options.version_compatible:
        flag = _member(trt.BuilderFlag, "VERSION_COMPATIBLE", "build.version_compatible")
        config.set_flag(flag)
    if options.hardware_compatible != "none":
        name = options.hardware_compatible.upper()
        level = _member(trt.HardwareCompatibilityLevel, name, "build.hardware_compatible")
        config.hardware_compatibility_level = level
    if options.compute_capabilities:
        _restrict(trt, config, options.compute_capabilities)


def _restrict(trt: Any, config: Any, names: tuple[str, ...]) -> None:
    key = "build.rtx_compute_capabilities"
    if CURRENT in names and len(names) > 1:
        raise StageError(
            f"{CURRENT} stands alone",
            where=key,
            why=f"found {', '.join(names)}",
            hint=f"leave {CURRENT} out, or the others",
        )
    members = [_member(trt.ComputeCapability, name, key) for name in names]
    config.num_compute_capabilities = len(members)
    for index, member in enumerate(members):
        if not config.set_compute_capability(member, index):
            raise StageError(
                "TensorRT for RTX does not build for these GPUs",
                where=key,
                why=f"it refuses {names[index]} of {', '.join(names)}",
                hint="name others, or leave the setting out for all that the version supports",
            )


def _member(members: Any, name: str, key: str) -> Any:
    """One name of an enumeration of the SDK, which differs from version to version."""
    found = getattr(members, name, None)
    if found is None:
        known = sorted(one for one in getattr(members, "__members__", vars(members)) if one.isupper())
        raise StageError(
            f"this version of TensorRT does not know {name}",
            where=key,
            why=f"it knows {', '.join(known)}",
            hint="choose one of these, or another version of the package",
        )
    return found


def _off(key: str) -> str:
    return str(OFF[key.removeprefix("build.")]).lower()
