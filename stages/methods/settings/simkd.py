"""Settings of SimKD."""

from __future__ import annotations

from typing import ClassVar, Literal

from stages.fields import setting
from stages.methods.settings.base import MethodSettings


class SimkdSettings(MethodSettings):
    """SimKD: the student uses the teacher's classifier, after a projector that is deployed too."""

    method: ClassVar[str] = "stages.methods.simkd:Simkd"

    name: Literal["simkd"]
    reduction: int = setting(
        2, "the teacher's channels divided by the projector's inner channels; higher is smaller", ge=1
    )
