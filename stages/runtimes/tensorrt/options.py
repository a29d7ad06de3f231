"""The builder's options in a profile besides batches, and which package has them. Light."""

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
"""Settings that the builder of TensorRT for RTX refuses or ignores, and why."""

OFF = {"refit": False, "version_compatible": False, "hardware_compatible": "none"}

CURRENT = "CURRENT"


@dataclass(frozen=True)
class Options:
    """The flags of one build.

    Attributes:
        refit: weights can be exchanged.
        version_compatible: later minor versions can load the engine.
        hardware_compatible: `none`, `same_compute_capability` or `ampere_plus`.
        compute_capabilities: GPUs of a TensorRT for RTX engine; empty: the package's own choice.
    """

    refit: bool = False
    version_compatible: bool = False
    hardware_compatible: str = "none"
    compute_capabilities: tuple[str, ...] = ()


def options_of(package: str, settings: Mapping[str, Any]) -> Options:
    """Return the options of the profile's `build` section for this package.

    Raises:
        StageError: the package lacks one of them; before anything is built.
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
    """Return the keys that TensorRT for RTX cannot follow, each with the reason."""
    return {f"build.{key}": why for key, why in CLASSIC_ONLY.items() if settings[key] != OFF[key]}


def check_targets(runtimes: Iterable[str], settings: Mapping[str, Any]) -> None:
    """Check that at least one of the profile's runtimes can follow the settings.

    If a profile has targets of both packages, only those for RTX are not built.

    Raises:
        UsageError: none can.
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
    """Set the options in the builder's configuration.

    Raises:
        StageError: this version of the SDK lacks one of them.
    """
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
            f"{CURRENT} cannot be combined with other GPUs",
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
    """Return a member of an enumeration of the SDK, whose members differ from version to version."""
    member = getattr(members, name, None)
    if member is None:
        known = sorted(other for other in getattr(members, "__members__", vars(members)) if other.isupper())
        raise StageError(
            f"this version of TensorRT has no {name}",
            where=key,
            why=f"it has {', '.join(known)}",
            hint="choose one of these, or another version of the package",
        )
    return member


def _off(key: str) -> str:
    return str(OFF[key.removeprefix("build.")]).lower()
