"""Settings of UHKD."""

from __future__ import annotations

from typing import ClassVar, Literal

from stages.fields import setting
from stages.methods.settings.base import MethodSettings


class UhkdSettings(MethodSettings):
    """Matches the low frequencies of the stages' maps (arXiv 2510.24116), our reading."""

    method: ClassVar[str] = "stages.methods.uhkd:Uhkd"

    name: Literal["uhkd"]
    ends: int = setting(4, "deepest stage ends whose spectra are compared", unit="ends", ge=1, le=4)
    block: int = setting(
        7,
        "frequencies kept per axis, from the lowest on; cut to what the smaller map holds in full",
        unit="coefficients",
        ge=1,
    )
    representation: Literal["log_magnitude", "complex"] = setting(
        "log_magnitude", "what of a coefficient is compared; complex: its real and imaginary parts"
    )
    lambda_kd: float = setting(1.0, "weight of the KD term on the logits", ge=0.0)
    kd_temperature: float = setting(4.0, "temperature of that KD term", gt=0.0)
