"""Settings of DCD."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import model_validator

from stages.fields import setting
from stages.methods.parts.argument_checks import require_learnable_scale
from stages.methods.settings.base import MethodSettings


class DcdSettings(MethodSettings):
    """Discriminative and consistent distillation: in-batch contrast of pooled vectors (arXiv 2407.11802)."""

    method: ClassVar[str] = "stages.methods.dcd:Dcd"

    name: Literal["dcd"]
    feat_dim: int = setting(128, "length to which both pooled vectors are projected", unit="channels", ge=1)
    scale: float = setting(math.e, "factor of the similarities at the start (1 / temperature)", gt=0.0)
    learn_scale: bool = setting(True, "learn the factor")
    max_scale: float = setting(10.0, "upper bound of the learned factor", gt=0.0)
    weight_decay_on_scale: bool = setting(
        True, "apply the recipe's weight decay to the logarithm of the learned factor"
    )
    bias: bool = setting(False, "learn a constant in addition to the factor; it cancels and has no effect")
    consistency_weight: float = setting(0.5, "weight of the consistency term", ge=0.0)
    detach_consistency_target: bool = setting(
        False, "compute the consistency term's gradient only through the row softmax"
    )
    symmetric: bool = setting(False, "add the contrast anchored at the teacher")

    @model_validator(mode="after")
    def _check_scale(self) -> DcdSettings:
        require_learnable_scale(self.scale, self.max_scale, learn_scale=self.learn_scale)
        return self
