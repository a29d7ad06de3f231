"""The whole command line over a table of small stages: real profiles, store, runner and processes.

`python -m tests.pipeline.smallhouse run PROFILE` is `kdpipe run PROFILE` with these stages. The
environment variable SMALL_TROUBLE says what the first one does wrong.
"""

from __future__ import annotations

from pipeline.stage import Stage

HERE = "tests.pipeline.smallhouse"

STAGES: tuple[Stage, ...] = (
    Stage("train", "Train, in no time.", f"{HERE}.train", 1, (), ("seed", "train")),
    Stage("evaluate", "Judge.", f"{HERE}.evaluate", 1, ("train",), ("evaluate",)),
    Stage("measure", "Measure.", f"{HERE}.measure", 1, ("evaluate",), ("measure",)),
    Stage("package", "Pack.", f"{HERE}.package", 1, ("measure",), ("name", "package")),
    Stage("report", "Report.", f"{HERE}.report", 1, ("package",), ("report",)),
)
