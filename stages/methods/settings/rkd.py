"""Settings of relational knowledge distillation."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from stages.fields import setting
from stages.methods.parts.argument_checks import require_positive_weight
from stages.methods.settings.base import MethodSettings


class RkdSettings(MethodSettings):
    """Relational knowledge distillation: distances and angles among images (Park et al., 2019)."""

    method: ClassVar[str] = "stages.methods.rkd:Rkd"

    name: Literal["rkd"]
    distance_weight: float = setting(25.0, "weight of the distances between two images", ge=0.0)
    angle_weight: float = setting(50.0, "weight of the angles among three images", ge=0.0)

    @model_validator(mode="after")
    def _check_weights(self) -> RkdSettings:
        require_positive_weight(distance_weight=self.distance_weight, angle_weight=self.angle_weight)
        return self
