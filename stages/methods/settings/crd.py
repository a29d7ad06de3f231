"""Settings of CRD."""

from __future__ import annotations

from typing import ClassVar, Literal

from stages.fields import setting
from stages.methods.settings.base import MethodSettings


class CrdSettings(MethodSettings):
    """Contrastive representation distillation with a memory bank (Tian et al., 2020)."""

    method: ClassVar[str] = "stages.methods.crd:Crd"

    name: Literal["crd"]
    negatives: int = setting(
        16384,
        "images of other classes drawn as negatives for each image, at most as many as exist",
        unit="images",
        ge=1,
    )
    temperature: float = setting(0.07, "divisor of the similarities", gt=0.0)
    momentum: float = setting(
        0.5, "share of the old vector when a bank stores a new vector of an image", ge=0.0, lt=1.0
    )
    proj_dim: int = setting(128, "length to which both pooled vectors are projected", unit="channels", ge=1)
    shared_negatives: bool = setting(
        False,
        "draw the negatives once for the whole batch; saves memory and time with very many training images",
    )
