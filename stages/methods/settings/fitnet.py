"""Settings of FitNet."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from stages.fields import setting
from stages.methods.parts.argument_checks import require_stage_ends
from stages.methods.settings.base import MethodSettings


class FitnetSettings(MethodSettings):
    """FitNet: the student's inner maps, through a regressor, match the teacher's (Romero et al., 2015)."""

    method: ClassVar[str] = "stages.methods.fitnet:Fitnet"

    name: Literal["fitnet"]
    hints: list[int] | Literal["all"] = setting(
        lambda: [-2],
        "stage ends to match: numbers from the deepest (-1, the one before it -2, …), or `all`",
    )
    regressor: Literal["conv", "linear"] = setting(
        "conv",
        "layers on the student's map. conv: convolution, batch norm and ReLU; linear: a 1x1 convolution",
    )

    @model_validator(mode="after")
    def _check_hints(self) -> FitnetSettings:
        if self.hints != "all":
            require_stage_ends("hints", self.hints)
        return self
