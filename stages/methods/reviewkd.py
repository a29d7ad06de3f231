"""ReviewKD: the student reviews its shallower maps in the light of its deeper ones.

Chen et al., "Distilling Knowledge via Knowledge Review" (2021), sections 3.2 and 3.3. With F_S[l],
F_T[l] the maps at the stage ends, level L the deepest; c1 (1x1) and c2 (3x3) convolutions with
batch norm, a (1x1) a convolution with a sigmoid that gives one gate a pixel for each of two maps:

    X[L]   = c1(F_S[L])
    X[l]   = g1 * c1(F_S[l]) + g2 * up(X[l+1]),     (g1, g2) = a( [c1(F_S[l]), up(X[l+1])] )     "ABF"
    X[l]   is brought to the size of F_T[l]
    L      = sum over levels of HCL( c2(X[l]), F_T[l] )              HCL: `pyramid.pyramid_loss`

The teacher's maps are those before the activation that ends their stage, the student's those after
it, as in the official CIFAR code. As there, the pooled vectors are the deepest level, a 1x1 map each.

Our reading, where the official code has the sizes of each pair written out: the levels are paired
from the deepest, and where one network has more, its shallowest are left out. Every change of size
goes by exact area: it repeats pixels where the official code's nearest interpolation does (by a whole
factor up), and averages where that would drop some.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.methods.base import Batch, Method
from stages.methods.parts.ends import Shape, paired
from stages.methods.parts.pyramid import pyramid_loss
from stages.methods.parts.regressors import SteadyNorm
from stages.methods.settings import MethodSettings, ReviewkdSettings
from stages.models.features import Features, FeatureSpec, Needs
from stages.models.resampling import AreaResample, Size


class Reviewkd(Method):
    """The loss of the module's equations. Learns a fusion for each level."""

    name = "reviewkd"

    def __init__(self, settings: ReviewkdSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Raises ModelError if a network shows no stage ends."""
        super().__init__(settings, student, teacher)
        self.settings = settings
        levels = paired(self.name, student, teacher)[::-1]
        if settings.pooled_vector:
            levels.insert(0, ((student.embedding, 1, 1), (teacher.embedding, 1, 1)))
        middle = min(settings.channels, levels[0][0][0])
        fusions: list[Fusion] = []
        for ours, theirs in levels:
            fusions.append(Fusion(ours, theirs, middle, fusions[-1].size if fusions else None))
        self.fusions = nn.ModuleList(fusions)

    @classmethod
    def needs(cls, settings: MethodSettings) -> Needs:
        return Needs(ends=True, before_activation=True)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        before = self.settings.student_before_activation
        ours = self._levels(student.ends_before if before else student.ends, student)
        theirs = self._levels(teacher.ends_before, teacher)
        loss = student.logits.new_zeros((), dtype=torch.float32)
        fused: Tensor | None = None
        with torch.autocast(student.logits.device.type, enabled=False):
            for fusion, mine, wanted in zip(self.fusions, ours, theirs, strict=True):
                matched, fused = fusion(mine.float(), fused)
                loss = loss + pyramid_loss(matched, wanted.detach())
        return loss

    def _levels(self, ends: tuple[Tensor, ...], features: Features) -> list[Tensor]:
        """(B, C, H, W) each, the deepest first, as many as there are fusions."""
        vector = [features.embedding[:, :, None, None]] if self.settings.pooled_vector else []
        return [*vector, *reversed(ends)][: len(self.fusions)]


class Fusion(nn.Module):
    """One level: (B, *student), (B, middle, *deeper) or None -> c2(X) (B, *teacher), X (B, middle, H_T, W_T).

    size: that of X. deeper: that of the next deeper level's X; None for the deepest.
    """

    def __init__(self, student: Shape, teacher: Shape, middle: int, deeper: Size | None) -> None:
        super().__init__()
        here, self.size = student[1:], teacher[1:]
        self.enter = _convolution(student[0], middle, 1)
        self.leave = _convolution(middle, teacher[0], 3)
        self.resize = AreaResample(here, self.size)
        self.bring = None if deeper is None else AreaResample(deeper, here)
        self.gates = None if deeper is None else nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid())

    def forward(self, maps: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        fused = self.enter(maps)
        if self.gates is not None and self.bring is not None and deeper is not None:
            brought = self.bring(deeper)
            own, other = self.gates(torch.cat([fused, brought], dim=1)).split(1, dim=1)
            fused = own * fused + other * brought
        fused = self.resize(fused)
        return self.leave(fused), fused


def _convolution(before: int, after: int, kernel: int) -> nn.Sequential:
    """With batch norm; started as the official code does: a = 1, the gain of a layer without activation."""
    layer = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    return nn.Sequential(layer, SteadyNorm(after))
