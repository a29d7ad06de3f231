"""What a profile may say of a distillation method: one typed class a method, by `name`.

Light: imports pydantic alone. The order of `BUILT_IN` is that of the schema and of docs/profile.md.
"""

from __future__ import annotations

from stages.methods.settings.base import MethodSettings
from stages.methods.settings.kd import KdSettings
from stages.methods.settings.msdcrd import MsdcrdSettings

BUILT_IN: tuple[type[MethodSettings], ...] = (
    MsdcrdSettings,
    KdSettings,
)

__all__ = [
    "BUILT_IN",
    "KdSettings",
    "MethodSettings",
    "MsdcrdSettings",
]
