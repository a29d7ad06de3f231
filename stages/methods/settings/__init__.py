"""The settings of the distillation methods in a profile: one typed class per method, selected by `name`.

Imports only pydantic. The order of `BUILT_IN` is that of the schema and of docs/reference/profile.md.
"""

from __future__ import annotations

from stages.methods.settings.base import MethodSettings
from stages.methods.settings.crd import CrdSettings
from stages.methods.settings.dcd import DcdSettings
from stages.methods.settings.dist import DistSettings
from stages.methods.settings.dkd import DkdSettings
from stages.methods.settings.fbt import FbtSettings
from stages.methods.settings.fitnet import FitnetSettings
from stages.methods.settings.kd import KdSettings
from stages.methods.settings.lfcc import LfccSettings
from stages.methods.settings.mlkd import MlkdSettings
from stages.methods.settings.msdcrd import MsdcrdSettings
from stages.methods.settings.ofa import OfaSettings
from stages.methods.settings.pat import PatSettings
from stages.methods.settings.reviewkd import ReviewkdSettings
from stages.methods.settings.rkd import RkdSettings
from stages.methods.settings.rsd import RsdSettings
from stages.methods.settings.sdd import SddSettings
from stages.methods.settings.simkd import SimkdSettings
from stages.methods.settings.uhkd import UhkdSettings

BUILT_IN: tuple[type[MethodSettings], ...] = (
    MsdcrdSettings,
    DcdSettings,
    LfccSettings,
    KdSettings,
    DkdSettings,
    DistSettings,
    MlkdSettings,
    SddSettings,
    RkdSettings,
    CrdSettings,
    FitnetSettings,
    ReviewkdSettings,
    SimkdSettings,
    RsdSettings,
    OfaSettings,
    UhkdSettings,
    PatSettings,
    FbtSettings,
)

__all__ = [
    "BUILT_IN",
    "CrdSettings",
    "DcdSettings",
    "DistSettings",
    "DkdSettings",
    "FbtSettings",
    "FitnetSettings",
    "KdSettings",
    "LfccSettings",
    "MethodSettings",
    "MlkdSettings",
    "MsdcrdSettings",
    "OfaSettings",
    "PatSettings",
    "ReviewkdSettings",
    "RkdSettings",
    "RsdSettings",
    "SddSettings",
    "SimkdSettings",
    "UhkdSettings",
]
