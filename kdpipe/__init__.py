"""kdpipe from Python: the same runs, plans and comparisons as on the command line, as typed values.

    import kdpipe

    run = kdpipe.run("resnet_to_mobilenet", set={"distill.epochs": 5})
    print(run.scorecard)
    print(run.pick.target, run.pick.reason)
    student = run.student()                                # a torch module in eval mode
    logits = student(run.preprocess(["a.png", "b.png"]))   # float32 (2, classes)

`import kdpipe` imports no torch, no numpy and no pydantic; each is imported when it is needed.
Everything that is listed in `__all__` is public. Modules whose names start with `_` are not.
"""

from __future__ import annotations

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
