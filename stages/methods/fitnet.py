"""FitNet: hints for the student's inner maps.

Romero et al., "FitNets: Hints for Thin Deep Nets" (2015), equation 3, in the form that the code of
CRD (Tian et al., 2020) made common: regressor and student are trained together, in one stage,
where the paper trains the regressor and the student's lower half first.

With F_S, F_T the maps at a stage end, r the regressor:

    L = sum over hints of mean( (r(F_S) - F_T)^2 )          mean over images, channels and pixels
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.methods.base import Batch, Method
from stages.methods.parts.ends import paired
from stages.methods.parts.regressors import conv_regressor, linear_regressor
from stages.methods.settings import FitnetSettings, MethodSettings
from stages.models.features import Features, FeatureSpec, Needs


class Fitnet(Method):
    """The loss of the module's equation. Learns a regressor for each hint."""

    name = "fitnet"

    def __init__(self, settings: FitnetSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Raises ModelError if a network has no stage end of a number in `hints`."""
        super().__init__(settings, student, teacher)
        reach = 1 if settings.hints == "all" else -min(settings.hints)
        pairs = paired(self.name, student, teacher, at_least=reach)
        self.hints = list(range(-len(pairs), 0)) if settings.hints == "all" else sorted(settings.hints)
        make = conv_regressor if settings.regressor == "conv" else linear_regressor
        made = [make(*pairs[hint]) for hint in self.hints]
        self.regressors = nn.ModuleList(regressor for regressor, _ in made)
        self.targets = nn.ModuleList(target for _, target in made)

    @classmethod
    def needs(cls, settings: MethodSettings) -> Needs:
        return Needs(ends=True)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        loss = student.logits.new_zeros((), dtype=torch.float32)
        with torch.autocast(student.logits.device.type, enabled=False):
            for hint, regressor, target in zip(self.hints, self.regressors, self.targets, strict=True):
                wanted = target(teacher.ends[hint].detach().float())
                loss = loss + (regressor(student.ends[hint].float()) - wanted).square().mean()
        return loss
