"""Settings of decoupled knowledge distillation."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from stages.fields import setting
from stages.methods.settings.base import MethodSettings


class DkdSettings(MethodSettings):
    """Decoupled knowledge distillation: the true class and the others apart (Zhao et al., 2022)."""

    method: ClassVar[str] = "stages.methods.dkd:Dkd"

    name: Literal["dkd"]
    alpha: float = setting(1.0, "weight of the true class against all others", ge=0.0)
    beta: float = setting(8.0, "weight of the distribution among the other classes", ge=0.0)
    temperature: float = setting(4.0, "softens both distributions; the loss carries T^2", gt=0.0)

    @model_validator(mode="after")
    def _says_something(self) -> DkdSettings:
        if self.alpha == 0.0 and self.beta == 0.0:
            raise ValueError("alpha and beta are both 0: the method would do nothing")
        return self
