"""Whether the fine-tune under simulated quantization can run. Light: `kdpipe plan` calls it for every run."""

from __future__ import annotations

from typing import Any


def may_run(settings: Any) -> bool:
    """Return whether an INT8 file may be quantized again from a fine-tuned student.

    Without an INT8 target, or with `quantize.distill.when: never`, the stage quantize reads neither `seed`,
    `compute` nor `distill`.

    Args:
        settings: Has `quantize` and `targets`, typed or as plain attributes.
    """
    has_int8 = any(target.name.rpartition("-")[2] == "int8" for target in settings.targets)
    return has_int8 and settings.quantize.distill.when != "never"
