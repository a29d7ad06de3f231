"""Settings of ReviewKD."""

from __future__ import annotations

from typing import ClassVar, Literal

from stages.fields import setting
from stages.methods.settings.base import MethodSettings


class ReviewkdSettings(MethodSettings):
    """Knowledge review: deeper maps of the student help shallower ones to match (Chen et al., 2021)."""

    method: ClassVar[str] = "stages.methods.reviewkd:Reviewkd"

    name: Literal["reviewkd"]
    channels: int = setting(512, "most channels of the fused maps", unit="channels", ge=1)
    pooled_vector: bool = setting(True, "match the pooled vectors too, as the deepest level")
    student_before_activation: bool = setting(
        False, "read the student's maps, too, before the activation that ends them"
    )
