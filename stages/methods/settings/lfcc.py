"""Settings of LFCC."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from stages.fields import setting
from stages.methods.parts.argument_checks import require_grids, require_odd, require_stage_ends
from stages.methods.settings.base import MethodSettings

SHALLOWEST_END = -4
"""The shallowest stage end that can be selected by number."""


class LfccSettings(MethodSettings):
    """Low-frequency components contrast across stages (arXiv 2405.18524), our reading."""

    method: ClassVar[str] = "stages.methods.lfcc:Lfcc"

    name: Literal["lfcc"]
    stages: list[int] | Literal["ends"] = setting(
        "ends",
        "ends: every stage end that both networks have; or numbers from the deepest, -1 to -4",
    )
    grids: list[int] = setting(
        lambda: [1, 2, 4], "cells per axis at each scale, limited to the smaller map", min_length=1
    )
    filter: Literal["avgpool", "gaussian", "dct", "learnable_depthwise"] = setting(
        "avgpool", "low-pass filter of the student's maps; the teacher's are always average-pooled"
    )
    sigma: float = setting(0.5, "standard deviation of filter gaussian", unit="cells", ge=0.05)
    kernel: int = setting(3, "side of filter learnable_depthwise, an odd number", unit="pixels", ge=3)
    unit: Literal["concat", "cell"] = setting(
        "concat", "vectors of the contrast. concat: all cells of a scale as one; cell: each cell separately"
    )
    tau: float = setting(0.1, "temperature", gt=0.0)
    proj_dim: int = setting(
        128, "length to which the vectors of both networks are projected", unit="channels", ge=1
    )
    symmetric: bool = setting(False, "add the direction anchored at the teacher")

    @model_validator(mode="after")
    def _check_grids_stages_and_kernel(self) -> LfccSettings:
        require_grids(self.grids)
        if isinstance(self.stages, list):
            require_stage_ends("stages", self.stages, lowest=SHALLOWEST_END)
        require_odd(kernel=self.kernel)
        return self
