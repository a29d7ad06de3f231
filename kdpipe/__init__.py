"""kdpipe from Python: the same runs, plans and comparisons as on the command line, as typed values.

    import kdpipe

    run = kdpipe.run("resnet_to_mobilenet", set={"distill.epochs": 5})
    print(run.scorecard)
    print(run.pick.target, run.pick.reason)
    student = run.student()                                # a torch module in eval mode
    logits = student(run.preprocess(["a.png", "b.png"]))   # float32 (2, classes)

`import kdpipe` imports nothing else; a name is loaded when it is first used. Everything that is listed in
`__all__` is public. Modules whose names start with `_` are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdpipe._api import compare, methods, plan, run
    from kdpipe._comparison import ComparedMethod, ComparedRun, Comparison
    from kdpipe._methods import Method, Setting
    from kdpipe._plan import Plan, PlannedStage
    from kdpipe._run import Gate, Pick, Run
    from kdpipe._scorecard import Latency, Scorecard, ScorecardRow
    from kdpipe._stages import Reason, StageResult
    from pipeline import __version__
    from pipeline.errors import (
        DataError,
        Fault,
        GateMissed,
        KdpipeError,
        MachineCannot,
        ModelError,
        ProfileError,
        StageError,
        UsageError,
    )

__all__ = [
    "ComparedMethod",
    "ComparedRun",
    "Comparison",
    "DataError",
    "Fault",
    "Gate",
    "GateMissed",
    "KdpipeError",
    "Latency",
    "MachineCannot",
    "Method",
    "ModelError",
    "Pick",
    "Plan",
    "PlannedStage",
    "ProfileError",
    "Reason",
    "Run",
    "Scorecard",
    "ScorecardRow",
    "Setting",
    "StageError",
    "StageResult",
    "UsageError",
    "__version__",
    "compare",
    "methods",
    "plan",
    "run",
]

_MODULES = {
    "kdpipe._api": ("compare", "methods", "plan", "run"),
    "kdpipe._comparison": ("ComparedMethod", "ComparedRun", "Comparison"),
    "kdpipe._methods": ("Method", "Setting"),
    "kdpipe._plan": ("Plan", "PlannedStage"),
    "kdpipe._run": ("Gate", "Pick", "Run"),
    "kdpipe._scorecard": ("Latency", "Scorecard", "ScorecardRow"),
    "kdpipe._stages": ("Reason", "StageResult"),
    "pipeline": ("__version__",),
}
"""By module, the public names that it defines; the others are errors."""


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used.

    The command `kdpipe` imports this package too, before it is known whether another package hides
    `pipeline`; so nothing of `pipeline` may be imported with it.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    _refuse_hidden_packages()
    module = next((module for module, names in _MODULES.items() if name in names), "pipeline.errors")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted({*globals(), *__all__})


def _refuse_hidden_packages() -> None:
    """Raise ImportError if Python would import another `pipeline` or `stages` than that of kdpipe."""
    from importlib.util import find_spec
    from pathlib import Path

    home = Path(__file__).resolve().parents[1]
    for package in ("pipeline", "stages"):
        spec = find_spec(package)
        origin = spec.origin if spec is not None else None
        if origin is not None and Path(origin).resolve().parent != home / package:
            raise ImportError(
                f"another Python package named {package} hides kdpipe's own: {origin}. "
                f"Rename it, or take its folder off Python's import path."
            )
