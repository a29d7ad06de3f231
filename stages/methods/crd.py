"""CRD: contrastive representation distillation.

Source: Y. Tian, D. Krishnan and P. Isola, ICLR 2020; the equations are those of the authors' code. Two
banks hold a vector of every one of the N training images, M_S the student's and M_T the teacher's. With
s = norm(h_S(f_S)), t = norm(h_T(f_T)) of one image, D = proj_dim channels, both projections learned,
K negatives j of other classes, and c = K / N:

    P(a, m) = exp(<a, m> / temperature) / Z                Z: N times the mean of exp over the first batch
    l(a, M) = - log( P(a, M[i]) / (P(a, M[i]) + c) ) - sum_j log( c / (P(a, M[j]) + c) )
    loss    = mean over the batch of l(s, M_T) + l(t, M_S)
    M[i]    = norm(momentum M[i] + (1 - momentum) a)       after the loss

The positive is the other network's vector of the same image in its bank. Our implementation:

- Negatives are drawn with replacement. K numbers r are drawn per step, and image i takes the numbers
  (r + row of i) modulo the images of other classes, counted in an order sorted by class: for each
  image K independent, uniform draws, which depend on the image and not on its position in the batch.
- The rows of the banks have that order, so an image's own class is one interval to skip.
- B x K rows of a bank would be 0.5 GB at B = 64, K = 16384, D = 128. Instead the products with the
  whole bank are computed, (B, N), and K of them are selected in each row: the same numbers. With
  `shared_negatives` all images share K rows; those of an image's own class do not count for it, and
  its c uses the number of those that do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from pipeline.errors import ModelError
from stages.methods.base import Batch, Method
from stages.methods.parts.argument_checks import require_above, require_at_least
from stages.methods.parts.contrastive_losses import unit_vectors
from stages.methods.parts.gathering import gather
from stages.models.features import Features, FeatureSpec

MAX_DRAW = 2**62
"""So far above the number of images that the remainder is practically uniform."""


@dataclass(frozen=True)
class NegativeRows:
    """The negatives of one step, as rows of a bank.

    Args:
        rows: (B, K) int64, or (K,) where all images share them.
        is_negative: (B, K) bool, which of the shared rows are of another class than the image; None: all.
        count: (B, 1) float32, the number of negatives of each image.
    """

    rows: Tensor
    is_negative: Tensor | None
    count: Tensor

    def scores(self, anchors: Tensor, bank: Tensor) -> Tensor:
        """Multiply each anchor with its negatives.

        Args:
            anchors: (B, D).
            bank: (N, D).

        Returns:
            (B, K).
        """
        if self.is_negative is not None:
            return torch.matmul(anchors, bank[self.rows].T)
        return torch.matmul(anchors, bank.T).gather(1, self.rows)

    def weighted_sums(self, weights: Tensor, bank: Tensor) -> Tensor:
        """Sum each image's negatives with weights.

        Args:
            weights: (B, K).
            bank: (N, D).

        Returns:
            (B, D).
        """
        if self.is_negative is not None:
            return torch.matmul(weights, bank[self.rows])
        images, bank_rows = len(weights), len(bank)
        # Flat, because a GPU adds in a fixed order only along one dimension.
        starts = torch.arange(images, device=bank.device)[:, None] * bank_rows
        by_row = torch.zeros(images * bank_rows, device=bank.device)
        by_row.scatter_add_(0, (self.rows + starts).flatten(), weights.flatten())
        return torch.matmul(by_row.view(images, bank_rows), bank)


class Crd(Method):
    """Contrast the pooled vectors with a memory bank of the training set.

    The loss is given in the module's equations. Learns both projections; its banks are saved with it.
    `prepare` must be called before the first step.

    Args:
        student: The student's shapes.
        teacher: The teacher's shapes.
        negatives: Images of other classes drawn for each image, at most as many as exist.
        temperature: Divisor of the similarities.
        momentum: Share of the old vector when a bank stores a new one, at least 0 and below 1.
        proj_dim: Channels that both pooled vectors are projected to.
        shared_negatives: Whether the whole batch shares one draw.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import timm, torch
        >>> from stages.methods.crd import Crd
        >>> from stages.methods.observed import run_networks
        >>> from stages.models.observer import Observer
        >>> student = Observer(timm.create_model("test_byobnet"))
        >>> teacher = Observer(timm.create_model("test_resnet")).eval()
        >>> method = Crd(student.spec(64, 3), teacher.spec(64, 3), negatives=3)
        >>> training_labels = torch.tensor([1, 0, 2, 1, 0, 0])
        >>> method.prepare(training_labels)
        >>> images, indices = torch.rand(2, 3, 64, 64), torch.tensor([4, 2])
        >>> loss = method(
        ...     *run_networks(student, teacher, images, training_labels[indices], indices=indices)
        ... )
        >>> loss.backward()
    """

    name = "crd"

    log_z: Tensor
    student_bank: Tensor
    teacher_bank: Tensor
    bank_rows: Tensor
    class_starts: Tensor
    class_sizes: Tensor

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        proj_dim: int = 128,
        shared_negatives: bool = False,
    ) -> None:
        super().__init__(student, teacher)
        require_at_least(1, negatives=negatives, proj_dim=proj_dim)
        require_above(0.0, temperature=temperature)
        require_at_least(0.0, momentum=momentum)
        if momentum >= 1.0:
            raise ValueError(f"momentum must be below 1, found {momentum:g}")
        self.negatives = negatives
        self.temperature, self.momentum = temperature, momentum
        self.proj_dim, self.shared_negatives = proj_dim, shared_negatives
        self.student_projector = nn.Linear(student.embedding, proj_dim)
        self.teacher_projector = nn.Linear(teacher.embedding, proj_dim)
        self.available_negatives = 0
        # Of student anchors and of teacher anchors; not a number until the first batch.
        self.register_buffer("log_z", torch.full((2,), math.nan))

    @override
    def prepare(self, labels: Tensor) -> None:
        """Create the banks with random directions.

        Args:
            labels: (N,) int64, the classes of all training images.

        Raises:
            ModelError: All images have the same class.
        """
        sizes = torch.bincount(labels)
        others = len(labels) - int(sizes.max())
        if others == 0:
            raise ModelError(
                "crd needs training images of at least two classes",
                why="its negatives are images of other classes, and there are none",
                hint="choose the method dcd, which contrasts all images",
            )
        self.available_negatives = min(self.negatives, others)
        bank_rows = torch.empty_like(labels)
        bank_rows[torch.argsort(labels, stable=True)] = torch.arange(len(labels))
        for name in ("student_bank", "teacher_bank"):
            directions = torch.randn(len(labels), self.proj_dim)
            self.register_buffer(name, functional.normalize(directions, dim=1))
        for name, values in (
            ("bank_rows", bank_rows),
            ("class_sizes", sizes),
            ("class_starts", sizes.cumsum(0) - sizes),
        ):
            self.register_buffer(name, values, persistent=False)

    @override
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Compute the loss of one step and store the batch's vectors in the banks.

        With several processes each returns the loss of its own images, and all banks store the vectors
        of the whole batch.

        Args:
            student: Features of B images.
            teacher: Features of the same images, without gradient.
            batch: Labels and indices of this step.

        Returns:
            A float32 scalar.
        """
        with torch.autocast(student.embedding.device.type, enabled=False):
            student_vectors = unit_vectors(self.student_projector(student.embedding.float()))
            teacher_vectors = unit_vectors(self.teacher_projector(teacher.embedding.detach().float()))
            own_rows = self.bank_rows[batch.indices]
            pairs = ((student_vectors, self.teacher_bank), (teacher_vectors, self.student_bank))
            with torch.no_grad():
                negatives = self._draw(own_rows, batch.labels)
                negative_scores = [
                    negatives.scores(anchors, bank) / self.temperature for anchors, bank in pairs
                ]
            positive_scores = [
                (anchors * bank[own_rows]).sum(1) / self.temperature for anchors, bank in pairs
            ]
            self._initialize_log_z(positive_scores, negative_scores, negatives)
            losses = [
                _noise_contrast(
                    anchors,
                    positive_scores[n],
                    negative_scores[n],
                    self.log_z[n] + (negatives.count / len(bank)).log(),
                    negatives,
                    bank,
                    self.temperature,
                )
                for n, (anchors, bank) in enumerate(pairs)
            ]
            self._update_banks(own_rows, student_vectors, teacher_vectors)
        return (losses[0] + losses[1]).mean()

    def _draw(self, own_rows: Tensor, labels: Tensor) -> NegativeRows:
        draws = torch.randint(MAX_DRAW, (self.available_negatives,), device=own_rows.device)
        starts, sizes = self.class_starts[labels][:, None], self.class_sizes[labels][:, None]
        if self.shared_negatives:
            rows = draws % len(self.bank_rows)
            is_negative = (rows < starts) | (rows >= starts + sizes)
            return NegativeRows(rows, is_negative, is_negative.sum(1, keepdim=True).clamp_min(1).float())
        rows = rows_of_other_classes(draws, own_rows[:, None], starts, sizes, len(self.bank_rows))
        count = torch.full_like(own_rows[:, None], self.available_negatives, dtype=torch.float32)
        return NegativeRows(rows, None, count)

    @torch.no_grad()
    def _initialize_log_z(
        self, positive_scores: list[Tensor], negative_scores: list[Tensor], negatives: NegativeRows
    ) -> None:
        """Set log Z from the first batch of all processes; later batches do not change it."""
        sums = []
        for positives, scores in zip(positive_scores, negative_scores, strict=True):
            if negatives.is_negative is not None:
                scores = scores.masked_fill(~negatives.is_negative, -torch.inf)
            sums.append(torch.cat([scores.flatten(), positives]).logsumexp(0))
        count = (negatives.count.sum() + len(positive_scores[0])).log()
        totals = gather(torch.stack([*sums, count])[None]).logsumexp(0)
        log_z = totals[:2] - totals[2] + math.log(len(self.bank_rows))
        self.log_z.copy_(torch.where(self.log_z.isnan(), log_z, self.log_z))

    @torch.no_grad()
    def _update_banks(self, own_rows: Tensor, student_vectors: Tensor, teacher_vectors: Tensor) -> None:
        rows, momentum = gather(own_rows), self.momentum
        vectors = gather(torch.cat([student_vectors, teacher_vectors], 1)).chunk(2, 1)
        for bank, new in zip((self.student_bank, self.teacher_bank), vectors, strict=True):
            bank.index_copy_(0, rows, unit_vectors(momentum * bank[rows] + (1.0 - momentum) * new))


def rows_of_other_classes(
    draws: Tensor, own_rows: Tensor, starts: Tensor, sizes: Tensor, images: int
) -> Tensor:
    """Turn random numbers into uniform rows of images of other classes.

    Args:
        draws: (K,) int64, uniform in a large range.
        own_rows: (B, 1) int64, each image's row in the order sorted by class.
        starts: (B, 1) int64, the first row of the image's class.
        sizes: (B, 1) int64, the number of images of the image's class.
        images: N.

    Returns:
        (B, K) int64.
    """
    rows = (draws + own_rows) % (images - sizes)
    return rows + sizes * (rows >= starts)


def _noise_contrast(
    anchors: Tensor,
    positive_scores: Tensor,
    negative_scores: Tensor,
    log_noise: Tensor,
    negatives: NegativeRows,
    bank: Tensor,
    temperature: float,
) -> Tensor:
    """Compute l of the module's equations, (B,), with logarithms, so that no exponential can overflow.

    Args:
        anchors: (B, D).
        positive_scores: (B,), logarithms of P Z of the positive.
        negative_scores: (B, K), logarithms of P Z of the negatives, without gradient.
        log_noise: (B, 1), log(Z c): the score at which a vector is as likely the image's as noise.
        negatives: The rows of the negatives.
        bank: (N, D).
        temperature: Divisor of the similarities.
    """
    with torch.no_grad():
        excess = negative_scores - log_noise
        losses, slope = functional.softplus(excess), torch.sigmoid(excess)
        if negatives.is_negative is not None:
            losses, slope = losses * negatives.is_negative, slope * negatives.is_negative
        of_negatives = losses.sum(1)
        # The gradient is computed here, because the bank changes before the backward pass.
        gradient = negatives.weighted_sums(slope, bank) / temperature
    of_positive = functional.softplus(log_noise[:, 0] - positive_scores)
    return of_positive + of_negatives + ((anchors - anchors.detach()) * gradient).sum(1)
