"""Settings of scale decoupled distillation."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from stages.fields import setting
from stages.methods.parts.argument_checks import require_grids, require_positive_weight
from stages.methods.settings.base import MethodSettings


class SddSettings(MethodSettings):
    """Scale decoupled distillation: the logits of the image's parts, at several scales (Wei et al., 2024)."""

    method: ClassVar[str] = "stages.methods.sdd:Sdd"

    name: Literal["sdd"]
    grids: list[int] = setting(
        lambda: [1, 2, 4], "parts per axis at each scale, limited to the smaller map", min_length=1
    )
    inner: Literal["kd", "dkd"] = setting("kd", "the loss of each part's logits")
    temperature: float = setting(
        4.0, "divisor of the logits of both networks; the loss is multiplied by its square", gt=0.0
    )
    alpha: float = setting(1.0, "inner dkd: weight of the true class against all others", ge=0.0)
    beta: float = setting(8.0, "inner dkd: weight of the distribution among the other classes", ge=0.0)
    complementary_weight: float = setting(
        2.0, "weight of parts where the teacher is right and wrong on the whole image, or the reverse", ge=0.0
    )

    @model_validator(mode="after")
    def _check_grids_and_weights(self) -> SddSettings:
        require_grids(self.grids)
        if self.inner == "dkd":
            require_positive_weight(alpha=self.alpha, beta=self.beta)
        return self
