"""Settings of multi-level logit distillation."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from stages.fields import setting
from stages.methods.settings.base import MethodSettings


class MlkdSettings(MethodSettings):
    """Multi-level logit distillation: by image, by batch and by class (Jin et al., 2023)."""

    method: ClassVar[str] = "stages.methods.mlkd:Mlkd"

    name: Literal["mlkd"]
    temperatures: list[float] = setting(
        lambda: [2.0, 3.0, 4.0, 5.0, 6.0],
        "each softens both distributions; their losses are added",
        min_length=1,
    )
    instance_weight: float = setting(1.0, "weight of the divergence in each image", ge=0.0)
    batch_weight: float = setting(1.0, "weight of the likeness between images", ge=0.0)
    class_weight: float = setting(1.0, "weight of the likeness between classes", ge=0.0)

    @model_validator(mode="after")
    def _says_something(self) -> MlkdSettings:
        if min(self.temperatures) <= 0.0:
            raise ValueError(f"temperatures must be above 0, found {min(self.temperatures)}")
        if self.instance_weight == 0.0 and self.batch_weight == 0.0 and self.class_weight == 0.0:
            raise ValueError("all three weights are 0: the method would do nothing")
        return self
