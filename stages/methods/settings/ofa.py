"""Settings of OFA-KD."""

from __future__ import annotations

from typing import ClassVar, Literal

from stages.fields import setting
from stages.methods.settings.base import MethodSettings


class OfaSettings(MethodSettings):
    """One for all: branches at the student's stages learn the teacher's logits (arXiv 2310.19444)."""

    method: ClassVar[str] = "stages.methods.ofa:Ofa"

    name: Literal["ofa"]
    form: Literal["code", "paper"] = setting(
        "code", "published form of the loss: that of the official code, or that of the paper"
    )
    eps: float = setting(1.0, "exponent of the target; the paper calls it gamma", gt=0.0)
    branches: int = setting(
        4, "number of deepest stage ends with a branch; 0: only the logits", unit="ends", ge=0, le=4
    )
