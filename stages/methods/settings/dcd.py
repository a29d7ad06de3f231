"""Settings of DCD."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import model_validator

from stages.fields import setting
from stages.methods.settings.base import MethodSettings


class DcdSettings(MethodSettings):
    """Discriminative and consistent distillation: in-batch contrast of pooled vectors (arXiv 2407.11802)."""

    method: ClassVar[str] = "stages.methods.dcd:Dcd"

    name: Literal["dcd"]
    feat_dim: int = setting(128, "both pooled vectors are projected to this length", unit="channels", ge=1)
    scale: float = setting(math.e, "factor of the similarities at the start (1 / temperature)", gt=0.0)
    learn_scale: bool = setting(True, "learn the factor")
    max_scale: float = setting(10.0, "the learned factor is cut off above this", gt=0.0)
    weight_decay_on_scale: bool = setting(
        True, "the recipe's weight decay pulls the logarithm of the learned factor towards 0"
    )
    bias: bool = setting(False, "learn a constant beside the factor; it cancels, and changes nothing")
    consistency_weight: float = setting(0.5, "weight of the consistency term", ge=0.0)
    detach_consistency_target: bool = setting(False, "the consistency term moves the row side alone")
    symmetric: bool = setting(False, "add the contrast anchored at the teacher")

    @model_validator(mode="after")
    def _starts_where_it_can_learn(self) -> DcdSettings:
        if self.learn_scale and self.scale > self.max_scale:
            raise ValueError(
                f"scale {self.scale:g} starts above max_scale {self.max_scale:g}, where it cannot learn"
            )
        return self
