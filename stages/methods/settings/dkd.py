"""Settings of decoupled knowledge distillation."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from stages.fields import setting
from stages.methods.parts.argument_checks import require_positive_weight
from stages.methods.settings.base import MethodSettings


class DkdSettings(MethodSettings):
    """Decoupled knowledge distillation: separate terms for true class and others (Zhao et al., 2022)."""

    method: ClassVar[str] = "stages.methods.dkd:Dkd"

    name: Literal["dkd"]
    alpha: float = setting(1.0, "weight of the true class against all others", ge=0.0)
    beta: float = setting(8.0, "weight of the distribution among the other classes", ge=0.0)
    temperature: float = setting(
        4.0, "divisor of the logits of both networks; the loss is multiplied by its square", gt=0.0
    )

    @model_validator(mode="after")
    def _check_weights(self) -> DkdSettings:
        require_positive_weight(alpha=self.alpha, beta=self.beta)
        return self
