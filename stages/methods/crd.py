"""CRD: contrastive representation distillation.

Y. Tian, D. Krishnan and P. Isola, ICLR 2020; the equations are those of the authors' code. Two banks
hold a vector of every one of the N training images, M_S the student's and M_T the teacher's. With
s = norm(h_S(f_S)), t = norm(h_T(f_T)) of one image, D = proj_dim channels, both projections learned,
K negatives j of other classes, and c = K / N:

    P(a, m) = exp(<a, m> / temperature) / Z                Z: N times the mean of exp over the first batch
    l(a, M) = - log( P(a, M[i]) / (P(a, M[i]) + c) ) - sum_j log( c / (P(a, M[j]) + c) )
    loss    = mean over the batch of l(s, M_T) + l(t, M_S)
    M[i]    = norm(momentum M[i] + (1 - momentum) a)       after the loss

The positive is the other network's vector of the same image as its bank has it. Ours:

- Negatives are drawn with replacement. K numbers r are drawn a step, and image i takes numbers
  (r + place of i) modulo the images of other classes, counted in an order sorted by class: for each
  image K independent, even draws, that depend on the image and not on its row.
- The banks lie in that order, so that an image's own class is one interval to step over.
- B x K rows of a bank would be 0.5 GB at B = 64, K = 16384, D = 128. Instead the products with the
  whole bank are taken, (B, N), and K of them are picked in each row: the same numbers. With
  `shared_negatives` K rows are taken for all, those of an image's own class do not count for it, and
  its c has the number of those that do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ModelError
from stages.methods.base import Batch, Method
from stages.methods.parts.contrast import unit
from stages.methods.parts.gathering import gather
from stages.methods.settings import CrdSettings
from stages.models.features import Features, FeatureSpec

HIGHEST_DRAW = 2**62
"""So far above the number of images that the remainder is as good as even."""


@dataclass(frozen=True)
class Drawn:
    """The negatives of a step.

    rows: places in the bank, (B, K) int64, or (K,) where all images share them. counts: (B, K) bool,
    which of the shared ones are of another class than the image; None: all are. number: of those that
    count, (B, 1) float32.
    """

    rows: Tensor
    counts: Tensor | None
    number: Tensor

    def scores(self, anchors: Tensor, bank: Tensor) -> Tensor:
        """(B, D), (N, D) -> (B, K): products of each anchor with its negatives."""
        if self.counts is not None:
            return torch.matmul(anchors, bank[self.rows].T)
        return torch.matmul(anchors, bank.T).gather(1, self.rows)

    def pulled(self, weights: Tensor, bank: Tensor) -> Tensor:
        """(B, K), (N, D) -> (B, D): the sum of each image's negatives by these weights."""
        if self.counts is not None:
            return torch.matmul(weights, bank[self.rows])
        images, places = len(weights), len(bank)
        # Flat, since a GPU adds in a fixed order only along one dimension.
        lines = torch.arange(images, device=bank.device)[:, None] * places
        spread = torch.zeros(images * places, device=bank.device)
        spread.scatter_add_(0, (self.rows + lines).flatten(), weights.flatten())
        return torch.matmul(spread.view(images, places), bank)


class Crd(Method):
    """The loss of the module's equations. Learns both projections; its banks are saved with it."""

    name = "crd"

    log_z: Tensor
    student_bank: Tensor
    teacher_bank: Tensor
    places: Tensor
    class_starts: Tensor
    class_sizes: Tensor

    def __init__(self, settings: CrdSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__(settings, student, teacher)
        self.settings = settings
        self.student_projector = nn.Linear(student.embedding, settings.proj_dim)
        self.teacher_projector = nn.Linear(teacher.embedding, settings.proj_dim)
        self.negatives = 0
        # Of student anchors and of teacher anchors; not a number until the first batch.
        self.register_buffer("log_z", torch.full((2,), math.nan))

    def prepare(self, labels: Tensor) -> None:
        """Makes the banks, of random directions. Raises ModelError if all images are of one class."""
        sizes = torch.bincount(labels)
        others = len(labels) - int(sizes.max())
        if others == 0:
            raise ModelError(
                "crd needs training images of at least two classes",
                why="its negatives are images of other classes, and there are none",
                hint="choose the method dcd, which contrasts all images",
            )
        self.negatives = min(self.settings.negatives, others)
        places = torch.empty_like(labels)
        places[torch.argsort(labels, stable=True)] = torch.arange(len(labels))
        for name in ("student_bank", "teacher_bank"):
            directions = torch.randn(len(labels), self.settings.proj_dim)
            self.register_buffer(name, functional.normalize(directions, dim=1))
        for name, known in (
            ("places", places),
            ("class_sizes", sizes),
            ("class_starts", sizes.cumsum(0) - sizes),
        ):
            self.register_buffer(name, known, persistent=False)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """As `Method.forward`; takes the batch's vectors up into the banks. With several processes
        each gives the loss of its own images, and all banks take up the whole batch."""
        with torch.autocast(student.embedding.device.type, enabled=False):
            ours = unit(self.student_projector(student.embedding.float()))
            theirs = unit(self.teacher_projector(teacher.embedding.detach().float()))
            own = self.places[batch.indices]
            pairs = ((ours, self.teacher_bank), (theirs, self.student_bank))
            heat = self.settings.temperature
            with torch.no_grad():
                drawn = self._draw(own, batch.labels)
                scores = [drawn.scores(anchors, bank) / heat for anchors, bank in pairs]
            near = [(anchors * bank[own]).sum(1) / heat for anchors, bank in pairs]
            self._freeze_z(near, scores, drawn)
            losses = [
                _noise_contrast(
                    anchors, near_by, far, self.log_z[n] + (drawn.number / len(bank)).log(), drawn, bank, heat
                )
                for n, ((anchors, bank), near_by, far) in enumerate(zip(pairs, near, scores, strict=True))
            ]
            self._take_up(own, ours, theirs)
        return (losses[0] + losses[1]).mean()

    def _draw(self, own: Tensor, labels: Tensor) -> Drawn:
        draws = torch.randint(HIGHEST_DRAW, (self.negatives,), device=own.device)
        starts, sizes = self.class_starts[labels][:, None], self.class_sizes[labels][:, None]
        if self.settings.shared_negatives:
            rows = draws % len(self.places)
            counts = (rows < starts) | (rows >= starts + sizes)
            return Drawn(rows, counts, counts.sum(1, keepdim=True).clamp_min(1).float())
        rows = of_other_classes(draws, own[:, None], starts, sizes, len(self.places))
        return Drawn(rows, None, torch.full_like(own[:, None], self.negatives, dtype=torch.float32))

    @torch.no_grad()
    def _freeze_z(self, near: list[Tensor], scores: list[Tensor], drawn: Drawn) -> None:
        """log Z, from the first batch of all processes; later batches leave it."""
        sums = []
        for near_by, far in zip(near, scores, strict=True):
            kept = far if drawn.counts is None else far.masked_fill(~drawn.counts, -torch.inf)
            sums.append(torch.cat([kept.flatten(), near_by]).logsumexp(0))
        number = (drawn.number.sum() + len(near[0])).log()
        of_all = gather(torch.stack([*sums, number])[None]).logsumexp(0)
        found = of_all[:2] - of_all[2] + math.log(len(self.places))
        self.log_z.copy_(torch.where(self.log_z.isnan(), found, self.log_z))

    @torch.no_grad()
    def _take_up(self, own: Tensor, ours: Tensor, theirs: Tensor) -> None:
        rows, momentum = gather(own), self.settings.momentum
        both = gather(torch.cat([ours, theirs], 1))
        for bank, new in zip((self.student_bank, self.teacher_bank), both.chunk(2, 1), strict=True):
            bank.index_copy_(0, rows, unit(momentum * bank[rows] + (1.0 - momentum) * new))


def of_other_classes(draws: Tensor, own: Tensor, starts: Tensor, sizes: Tensor, images: int) -> Tensor:
    """Draws (K,) from a large range -> places (B, K) of images of other classes, evenly.

    own, starts, sizes: (B, 1), each image's place in the order by class, and where its class begins
    there and how many it has. images: N.
    """
    rows = (draws + own) % (images - sizes)
    return rows + sizes * (rows >= starts)


def _noise_contrast(
    anchors: Tensor, near: Tensor, scores: Tensor, level: Tensor, drawn: Drawn, bank: Tensor, heat: float
) -> Tensor:
    """l of the module's equations, (B,), in logarithms, where no exponential can overflow.

    anchors (B, D). near (B,), scores (B, K): logarithms of P Z of the positive and of the negatives.
    level (B, 1): log(Z c), where a vector is as likely the image's as noise.
    """
    with torch.no_grad():
        above = scores - level
        away, slope = functional.softplus(above), torch.sigmoid(above)
        if drawn.counts is not None:
            away, slope = away * drawn.counts, slope * drawn.counts
        away = away.sum(1)
        # The gradient is taken here, since the bank changes before the backward pass.
        gradient = drawn.pulled(slope, bank) / heat
    return functional.softplus(level[:, 0] - near) + away + ((anchors - anchors.detach()) * gradient).sum(1)
