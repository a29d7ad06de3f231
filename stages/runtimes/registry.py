"""Runtimes by name. Light: importing it imports no runtime and nothing heavy.

A third party adds a runtime through an entry point of the group `kdpipe.runtimes`; the installed
packages are searched for those only when a name is not built in.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from pipeline import plugins
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from stages.runtimes.base import Runtime

GROUP = "kdpipe.runtimes"

BUILT_IN = {
    "ncnn": "stages.runtimes.ncnn.runtime",
    "onnxruntime": "stages.runtimes.onnx_runtime.cpu",
    "onnxruntime_cuda": "stages.runtimes.onnx_runtime.cuda",
    "onnxruntime_tensorrt": "stages.runtimes.onnx_runtime.tensorrt",
    "openvino": "stages.runtimes.openvino.runtime",
    "tensorrt": "stages.runtimes.tensorrt.classic",
    "tensorrt_rtx": "stages.runtimes.tensorrt.rtx",
}
"""The module of each built-in runtime; its object is called `RUNTIME`."""

INTERFACE = ("precisions", "not_offered", "recipe", "distributions")
CALLS = ("ability_to_build", "ability_to_run", "build", "load")


def names() -> tuple[str, ...]:
    """Return every runtime that is built in or installed, sorted; this searches the installed packages."""
    return tuple(sorted({*BUILT_IN, *plugins.installed(GROUP)}))


def get(name: str) -> Runtime:
    """Return a runtime by name.

    Raises:
        UsageError: there is none, or the package that brings it is damaged.
    """
    if name in BUILT_IN:
        runtime: Runtime = importlib.import_module(BUILT_IN[name]).RUNTIME
        return runtime
    point = plugins.installed(GROUP).get(name)
    if point is not None:
        return _load(point)
    every = names()
    near = difflib.get_close_matches(name, every, n=2, cutoff=0.5)
    raise UsageError(
        f"unknown runtime {name!r}",
        where="targets",
        why=f"the runtimes are {', '.join(every)}",
        hint=f"did you mean {' or '.join(near)}?"
        if near
        else "name one of these, or install the one you mean",
    )


def target_parts(name: str) -> tuple[str, str]:
    """Return the runtime and the precision in a target's name.

    Example:
        >>> target_parts("onnxruntime-int8")
        ('onnxruntime', 'int8')
    """
    runtime, _, precision = name.rpartition("-")
    return runtime, precision


def check_target(name: str) -> Runtime:
    """Return the runtime of the target `name`.

    Raises:
        UsageError: there is no such runtime, or it does not offer the precision.
    """
    runtime_name, precision = target_parts(name)
    runtime = get(runtime_name)
    if precision in runtime.precisions:
        return runtime
    targets = ", ".join(f"{runtime_name}-{offered}" for offered in runtime.precisions)
    raise UsageError(
        f"{runtime_name} does not offer {precision}",
        where=f"targets: {name}",
        why=runtime.not_offered.get(precision, f"its precisions are {', '.join(runtime.precisions)}"),
        hint=f"choose one of {targets}",
    )


def _load(point: EntryPoint) -> Runtime:
    where = plugins.place(point)
    hint = "repair or uninstall that package; docs/reference/runtimes.md describes the interface"
    try:
        runtime = plugins.load(point)
    except ImportError as error:
        raise UsageError(
            f"the runtime {point.name} cannot be imported", where=where, why=str(error), hint=hint
        ) from error
    absent = [part for part in INTERFACE if not hasattr(runtime, part)]
    absent += [part for part in CALLS if not callable(getattr(runtime, part, None))]
    if absent or isinstance(runtime, type):
        raise UsageError(
            f"the runtime {point.name} does not keep to the interface",
            where=where,
            why=f"it has no {', no '.join(absent)}" if absent else "it is a class, not an object",
            hint=hint,
        )
    checked: Runtime = runtime
    return checked
