"""Settings of FBT."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from stages.fields import setting
from stages.methods.settings.base import MethodSettings


class FbtSettings(MethodSettings):
    """Fuse before transfer, first named TAS: a fused network assists (arXiv 2410.12342), our reading."""

    method: ClassVar[str] = "stages.methods.fbt:Fbt"

    name: Literal["fbt"]
    form: Literal["code", "paper"] = setting("code", "form of the loss on the logits, as for ofa")
    eps: float = setting(1.0, "exponent of that loss, as for ofa", gt=0.0)
    tau: float = setting(
        0.1, "temperature of the contrastive loss where learning starts; it is learned", ge=0.01, le=1.0
    )
    lambda_contrast: float = setting(1.0, "weight of the contrastive loss on the pooled maps", ge=0.0)
    lambda_logits: float = setting(1.0, "weight of the loss on the logits", ge=0.0)
    heads: int = setting(
        4, "attention heads of the fusing block; cut to a divisor of the teacher's channels", ge=1
    )

    @model_validator(mode="after")
    def _says_something(self) -> FbtSettings:
        if self.lambda_contrast == 0.0 and self.lambda_logits == 0.0:
            raise ValueError("lambda_contrast and lambda_logits are both 0: the method would do nothing")
        return self
