"""Settings of FitNet."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from stages.fields import setting
from stages.methods.settings.base import MethodSettings


class FitnetSettings(MethodSettings):
    """FitNet: the student's inner maps, through a regressor, match the teacher's (Romero et al., 2015)."""

    method: ClassVar[str] = "stages.methods.fitnet:Fitnet"

    name: Literal["fitnet"]
    hints: list[int] | Literal["all"] = setting(
        lambda: [-2],
        "at which stage ends: numbers from the deepest (-1, the one before it -2, …), or `all`",
    )
    regressor: Literal["conv", "linear"] = setting(
        "conv",
        "how the student's map meets the teacher's: convolution with norm and ReLU, or a 1x1 without either",
    )

    @model_validator(mode="after")
    def _names_ends(self) -> FitnetSettings:
        if self.hints == "all":
            return self
        if not self.hints:
            raise ValueError("hints names no stage end: write `all`, or numbers such as [-2]")
        if max(self.hints) >= 0:
            raise ValueError(
                f"hints count from the deepest stage end, -1, -2, and so on; found {max(self.hints)}"
            )
        if len(set(self.hints)) < len(self.hints):
            raise ValueError("hints must not repeat a stage end")
        return self
