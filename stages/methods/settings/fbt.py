"""Settings of FBT."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from stages.fields import setting
from stages.methods.parts.argument_checks import require_positive_weight
from stages.methods.settings.base import MethodSettings


class FbtSettings(MethodSettings):
    """Fuse before transfer, first named TAS: a fused network assists (arXiv 2410.12342), our reading."""

    method: ClassVar[str] = "stages.methods.fbt:Fbt"

    name: Literal["fbt"]
    form: Literal["code", "paper"] = setting("code", "form of the loss on the logits, like for ofa")
    eps: float = setting(1.0, "exponent of the loss on the logits, like for ofa", gt=0.0)
    tau: float = setting(0.1, "initial temperature of the contrastive loss; it is learned", ge=0.01, le=1.0)
    lambda_contrast: float = setting(1.0, "weight of the contrastive loss on the pooled maps", ge=0.0)
    lambda_logits: float = setting(1.0, "weight of the loss on the logits", ge=0.0)
    heads: int = setting(
        4,
        "most attention heads of the fusing block; the number used also divides the teacher's channels",
        ge=1,
    )

    @model_validator(mode="after")
    def _check_weights(self) -> FbtSettings:
        require_positive_weight(lambda_contrast=self.lambda_contrast, lambda_logits=self.lambda_logits)
        return self
