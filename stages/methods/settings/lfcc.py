"""Settings of LFCC."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from stages.fields import setting
from stages.methods.settings.base import MethodSettings


class LfccSettings(MethodSettings):
    """Low-frequency components contrast across stages (arXiv 2405.18524), our reading."""

    method: ClassVar[str] = "stages.methods.lfcc:Lfcc"

    name: Literal["lfcc"]
    stages: list[int] | Literal["ends"] = setting(
        "ends",
        "ends: every stage end that both networks have; or some of them, counted from the deepest, -1",
    )
    grids: list[int] = setting(
        lambda: [1, 2, 4], "cells per axis at each scale; cut to the smaller map", min_length=1
    )
    filter: Literal["avgpool", "gaussian", "dct", "learnable_depthwise"] = setting(
        "avgpool", "low-pass of the student's maps; the teacher's are average-pooled always"
    )
    sigma: float = setting(0.5, "standard deviation of filter gaussian", unit="cells", ge=0.05)
    kernel: int = setting(3, "side of filter learnable_depthwise, an odd number", unit="pixels", ge=3)
    unit: Literal["concat", "cell"] = setting(
        "concat", "what is contrasted: all cells of a scale as one vector, or each cell on its own"
    )
    tau: float = setting(0.1, "temperature", gt=0.0)
    proj_dim: int = setting(128, "both networks' vectors are projected to this length", unit="channels", ge=1)
    symmetric: bool = setting(False, "add the direction anchored at the teacher")

    @model_validator(mode="after")
    def _says_something(self) -> LfccSettings:
        if min(self.grids) < 1:
            raise ValueError(f"grids must be at least 1, found {min(self.grids)}")
        if isinstance(self.stages, list):
            wrong = [number for number in self.stages if not -4 <= number <= -1]
            if wrong or not self.stages:
                found = f"found {wrong[0]}" if wrong else "found none"
                raise ValueError(f"stages are counted from the deepest, -4 to -1; {found}")
            if len(set(self.stages)) < len(self.stages):
                raise ValueError("stages must not repeat an end")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, found {self.kernel}")
        return self
