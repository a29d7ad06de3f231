"""Settings of PAT."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import model_validator

from stages.fields import setting
from stages.methods.settings.base import MethodSettings

MOST_ENDS = 4
"""The queries are shared out among so many stage ends."""


class PatSettings(MethodSettings):
    """Perspective-aware teaching, first named FOFA (arXiv 2501.08885), with feedback in our reading."""

    method: ClassVar[str] = "stages.methods.pat:Pat"

    name: Literal["pat"]
    queries: int = setting(
        64, "tokens in the attention, a quarter for each of four stage ends: four times a square", ge=4
    )
    width: int = setting(512, "channels of a token", unit="channels", ge=1)
    heads: int = setting(8, "attention heads; a divisor of the width", ge=1)
    lambda_kd: float = setting(1.0, "weight of the KD term with the unprompted teacher", ge=0.0)
    lambda_features: float = setting(1.0, "weight of the distance to the prompted teacher's maps", gt=0.0)
    lambda_prompt: float = setting(
        1.0, "weight of the term that keeps the prompted teacher's answers near the unprompted one's", ge=0.0
    )
    temperature: float = setting(1.0, "softens the distributions of both KL terms; they carry T^2", gt=0.0)

    @property
    def grid(self) -> int:
        """Tokens per axis of one stage end."""
        return math.isqrt(self.queries // MOST_ENDS)

    @model_validator(mode="after")
    def _divides(self) -> PatSettings:
        if MOST_ENDS * self.grid**2 != self.queries:
            near = ", ".join(str(MOST_ENDS * side**2) for side in (self.grid, self.grid + 1))
            raise ValueError(f"queries must be four times a square, found {self.queries}; near are {near}")
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        return self
