"""Settings of DIST."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from stages.fields import setting
from stages.methods.parts.argument_checks import require_positive_weight
from stages.methods.settings.base import MethodSettings


class DistSettings(MethodSettings):
    """DIST: predictions that correlate, within images and within classes (Huang et al., 2022)."""

    method: ClassVar[str] = "stages.methods.dist:Dist"

    name: Literal["dist"]
    beta: float = setting(1.0, "weight of the relation between classes, in each image", ge=0.0)
    gamma: float = setting(1.0, "weight of the relation between images, in each class", ge=0.0)
    temperature: float = setting(
        1.0, "divisor of the logits of both networks; the loss is multiplied by its square", gt=0.0
    )

    @model_validator(mode="after")
    def _check_weights(self) -> DistSettings:
        require_positive_weight(beta=self.beta, gamma=self.gamma)
        return self
