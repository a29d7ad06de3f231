"""Settings of PAT."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from stages.fields import setting
from stages.methods.parts.argument_checks import require_square_queries
from stages.methods.settings.base import MethodSettings

MAX_STAGE_ENDS = 4
"""The queries are divided evenly among this number of stage ends."""


class PatSettings(MethodSettings):
    """Perspective-aware teaching, first named FOFA (arXiv 2501.08885), with feedback in our reading."""

    method: ClassVar[str] = "stages.methods.pat:Pat"

    name: Literal["pat"]
    queries: int = setting(
        64, "tokens in the attention, a quarter for each of four stage ends: four times a square", ge=4
    )
    width: int = setting(512, "channels of a token", unit="channels", ge=1)
    heads: int = setting(8, "attention heads; a divisor of the width", ge=1)
    lambda_kd: float = setting(1.0, "weight of the KD term with the teacher without prompts", ge=0.0)
    lambda_features: float = setting(1.0, "weight of the distance to the prompted teacher's maps", gt=0.0)
    lambda_prompt: float = setting(
        1.0, "weight of the KD term between the teacher with and without prompts", ge=0.0
    )
    temperature: float = setting(
        1.0, "divisor of the logits in both KD terms, which are multiplied by its square", gt=0.0
    )

    @model_validator(mode="after")
    def _check_queries_and_heads(self) -> PatSettings:
        require_square_queries(self.queries, self.width, self.heads, stage_ends=MAX_STAGE_ENDS)
        return self
