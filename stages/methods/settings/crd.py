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
        "vectors of other classes drawn for each image; at most as many as there are such images",
        unit="images",
        ge=1,
    )
    temperature: float = setting(0.07, "divides the similarities", gt=0.0)
    momentum: float = setting(0.5, "share of the old vector when a bank takes up the new one", ge=0.0, lt=1.0)
    proj_dim: int = setting(128, "both pooled vectors are projected to this length", unit="channels", ge=1)
    shared_negatives: bool = setting(
        False, "one draw for the whole batch: less memory and time where there are very many images"
    )
