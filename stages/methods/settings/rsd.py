"""Settings of RSD."""

from __future__ import annotations

from typing import ClassVar, Literal

from stages.fields import setting
from stages.methods.settings.base import MethodSettings


class RsdSettings(MethodSettings):
    """Redundancy suppression: cross-correlation over the batch (arXiv 2507.21844), our reading."""

    method: ClassVar[str] = "stages.methods.rsd:Rsd"

    name: Literal["rsd"]
    kappa: float = setting(
        1.0, "weight of the correlations between different channels, relative to equal ones", ge=0.0
    )
    expansion: float = setting(
        2.0, "width between expander and adaptor, as a multiple of the student's pooled vector", gt=0.0
    )
