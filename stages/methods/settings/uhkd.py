"""Settings of UHKD."""

from __future__ import annotations

from typing import ClassVar, Literal

from stages.fields import setting
from stages.methods.settings.base import MethodSettings


class UhkdSettings(MethodSettings):
    """Match the low frequencies of the stages' maps (arXiv 2510.24116), our reading."""

    method: ClassVar[str] = "stages.methods.uhkd:Uhkd"

    name: Literal["uhkd"]
    ends: int = setting(4, "number of deepest stage ends whose spectra are compared", unit="ends", ge=1, le=4)
    block: int = setting(
        7,
        "frequencies per axis, from the lowest, limited to those that the smaller map contains in full",
        unit="coefficients",
        ge=1,
    )
    representation: Literal["log_magnitude", "complex"] = setting(
        "log_magnitude", "compared part of a coefficient; complex: its real and imaginary part"
    )
    lambda_kd: float = setting(1.0, "weight of the KD term on the logits", ge=0.0)
    kd_temperature: float = setting(4.0, "temperature of the KD term", gt=0.0)
