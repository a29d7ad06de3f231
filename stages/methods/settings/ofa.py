"""Settings of OFA-KD."""

from __future__ import annotations

from typing import ClassVar, Literal

from stages.fields import setting
from stages.methods.settings.base import MethodSettings


class OfaSettings(MethodSettings):
    """One for all: the student's stages answer through branches of their own (arXiv 2310.19444)."""

    method: ClassVar[str] = "stages.methods.ofa:Ofa"

    name: Literal["ofa"]
    form: Literal["code", "paper"] = setting(
        "code", "which of the two published forms of the loss: the official code's, or the paper's"
    )
    eps: float = setting(1.0, "exponent that adapts the target; the paper's form calls it gamma", gt=0.0)
    branches: int = setting(
        4, "deepest stage ends that answer through a branch; 0: the logits alone", unit="ends", ge=0, le=4
    )
