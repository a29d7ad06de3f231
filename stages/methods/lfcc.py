"""LFCC: low-frequency components of intermediate features in a contrast, in our reading of the abstract.

arXiv 2405.18524, for pairs of unlike families. Public to us is its abstract: multi-scale low-pass filters
of two kinds, of which average pooling is one, take the low frequencies of intermediate features of both
networks into a compact space; there a contrast at the level of samples holds teacher and student of
one image together and those of different images apart. The other filter, the stages, the temperature
and the weights are not public to us: what follows is our reading, and each is a setting.

For each pair l of stage ends, the deepest of one network with the deepest of the other, and each scale g:

    P_g      = low-pass to g x g cells                       the teacher's is average pooling, by exact area
    q[i,l,g] = norm( h_S,l,g( P_g(F_S,l)[i] ) )              cells in a row, one linear layer, unit length
    v[i,l,g] = norm( h_T,l,g( P_g(F_T,l)[i] ) )              proj_dim channels, float32
    L        = mean over l, g of  - (1/B) sum_i log softmax_j( <q[i,l,g], v[j,l,g]> / tau )[i]

With `unit: cell` each of the g x g cells is a vector and a contrast of its own, and the mean goes over
cells first; the layers h are then shared by the cells of a scale.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.methods.base import Batch, Method
from stages.methods.parts import contrast
from stages.methods.parts.ends import paired
from stages.methods.parts.gathering import gather, gather_with_gradient, place
from stages.methods.parts.lowpass import LowPass
from stages.methods.parts.places import Place
from stages.methods.parts.windows import cut
from stages.methods.settings import LfccSettings, MethodSettings
from stages.models.features import Features, FeatureSpec, Needs


class Lfcc(Method):
    """The loss of the module's equations. Learns the projections and, if so chosen, the student's filters."""

    name = "lfcc"

    weights: Tensor

    def __init__(self, settings: LfccSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Raises ModelError if a network does not show the stage ends."""
        super().__init__(settings, student, teacher)
        self.settings = settings
        chosen = settings.stages if isinstance(settings.stages, list) else []
        pairs = paired("lfcc", student, teacher, at_least=-min(chosen, default=-1))
        places = [Place(end=number) for number in sorted(chosen) or range(-len(pairs), 0)]
        levels = [Level(settings, place, student, teacher) for place in places]
        self.levels = nn.ModuleList(levels)
        shares = torch.cat([level.shares for level in levels]) / len(levels)
        self.register_buffer("weights", shares, persistent=False)

    @classmethod
    def needs(cls, settings: MethodSettings) -> Needs:
        return Needs(ends=True)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """As `Method.forward`. With several processes the negatives are those of the whole batch, each
        process gives the loss of its own images, and every process must hold equally many."""
        tau = self.settings.tau
        with torch.autocast(student.logits.device.type, enabled=False):
            vectors = [level(student, teacher) for level in self.levels]
            # All levels and scales in one contrast.
            ours, theirs_of_all = (torch.cat(parts, 1) for parts in zip(*vectors, strict=True))
            images = len(ours)
            first = place()[0] * images
            losses = contrast.sample_wise(ours, theirs_of_all, tau, first, None)
            if self.settings.symmetric:
                theirs = theirs_of_all[first : first + images]
                losses = losses + contrast.sample_wise(theirs, gather_with_gradient(ours), tau, first, None)
            return (losses * self.weights).sum(1).mean()


class Level(nn.Module):
    """Filters and projections of one pair of stage ends.

    shares: (U,) float32, what each of its U vectors counts; 1 in sum.
    """

    def __init__(
        self, settings: LfccSettings, place: Place, student: FeatureSpec, teacher: FeatureSpec
    ) -> None:
        super().__init__()
        self.place = place
        ours, theirs = place.shape(student, "student"), place.shape(teacher, "teacher")
        grids = cut(settings.grids, ours[1:], theirs[1:])
        cells = [grid**2 for grid in grids]
        # So many vectors of so many cells each.
        self.forms = [(1, count) if settings.unit == "concat" else (count, 1) for count in cells]
        self.student_filter = LowPass(
            settings.filter, grids, ours, sigma=settings.sigma, kernel=settings.kernel
        )
        self.teacher_filter = LowPass("avgpool", grids, theirs)
        self.student_projectors = self._projectors(ours[0], settings.proj_dim)
        self.teacher_projectors = self._projectors(theirs[0], settings.proj_dim)
        self.shares = torch.cat([torch.full((n,), 1.0 / (n * len(grids))) for n, _ in self.forms])

    def forward(self, student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
        """(B, U, D) of the student, (N, U, D) of the teacher's images of all processes; unit length."""
        # Gathered before the projection: then all that needs a gradient is local.
        theirs_of_all = gather(self.teacher_filter(self.place.of(teacher)))
        ours = self.student_filter(self.place.of(student))
        return (
            self._projected(ours, self.student_projectors),
            self._projected(theirs_of_all, self.teacher_projectors),
        )

    def _projectors(self, channels: int, width: int) -> nn.ModuleList:
        return nn.ModuleList(nn.Linear(inside * channels, width) for _, inside in self.forms)

    def _projected(self, cells: Tensor, projectors: nn.ModuleList) -> Tensor:
        scales = cells.split([vectors * inside for vectors, inside in self.forms], dim=1)
        made = [
            projector(scale.reshape(len(scale), vectors, -1))
            for scale, projector, (vectors, _) in zip(scales, projectors, self.forms, strict=True)
        ]
        return contrast.unit(torch.cat(made, 1))
