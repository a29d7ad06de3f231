"""Settings of multi-level logit distillation."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from stages.fields import setting
from stages.methods.parts.argument_checks import require_positive_weight, require_temperatures
from stages.methods.settings.base import MethodSettings


class MlkdSettings(MethodSettings):
    """Multi-level logit distillation: by image, by batch and by class (Jin et al., 2023)."""

    method: ClassVar[str] = "stages.methods.mlkd:Mlkd"

    name: Literal["mlkd"]
    temperatures: list[float] = setting(
        lambda: [2.0, 3.0, 4.0, 5.0, 6.0],
        "divisors of the logits of both networks; the losses of all temperatures are added",
        min_length=1,
    )
    instance_weight: float = setting(1.0, "weight of the divergence in each image", ge=0.0)
    batch_weight: float = setting(1.0, "weight of the similarity between images", ge=0.0)
    class_weight: float = setting(1.0, "weight of the similarity between classes", ge=0.0)

    @model_validator(mode="after")
    def _check_temperatures_and_weights(self) -> MlkdSettings:
        require_temperatures(self.temperatures)
        require_positive_weight(
            instance_weight=self.instance_weight,
            batch_weight=self.batch_weight,
            class_weight=self.class_weight,
        )
        return self
