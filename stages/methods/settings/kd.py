"""Settings of plain knowledge distillation."""

from __future__ import annotations

from typing import ClassVar, Literal

from stages.fields import setting
from stages.methods.settings.base import MethodSettings


class KdSettings(MethodSettings):
    """Plain knowledge distillation: temperature-softened logits (Hinton et al., 2015)."""

    method: ClassVar[str] = "stages.methods.kd:Kd"

    name: Literal["kd"]
    temperature: float = setting(
        4.0, "divisor of the logits of both networks; the loss is multiplied by its square", gt=0.0
    )
    logit_standardisation: bool = setting(
        False, "first scale each image's logits to mean 0 and deviation 1 (Sun et al., 2024)"
    )
