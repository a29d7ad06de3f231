"""When the fine-tune under simulated quantization can run. Light: the plan asks it for every run."""

from __future__ import annotations

from typing import Any


def may_run(settings: Any) -> bool:
    """Whether an INT8 file may be made again of a fine-tuned student.

    settings: has `quantize` and `targets`, typed or as plain attributes. Without an INT8 target or with
    `quantize.distill.when: never` the stage quantize reads neither `seed`, `compute` nor `distill`.
    """
    wanted = any(target.name.rpartition("-")[2] == "int8" for target in settings.targets)
    return wanted and settings.quantize.distill.when != "never"
