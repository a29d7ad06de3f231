"""UHKD: match the low frequencies of the maps of networks of different families, in our reading.

Source: arXiv 2510.24116. Only the abstracts are available to us: the teacher's feature goes through a
Fourier transform to a compact spectrum, the student's through a learned alignment into the same space,
at several levels; the loss is the cross-entropy, a KL on the logits and the mean squared error between
the spectra. Cut-off, levels, weights and the compared part of a coefficient are not available to us.
Our reading, for each pair of stage ends:

    X_T   = low( rfft2(F_T) ),   X_S = W low( rfft2(F_S) )       orthonormal transform, W a 1x1 convolution
    R     = log(1 + |X|), or the real and the imaginary part of X
    L     = mean over pairs of mean( (norm(R_S) - norm(R_T))^2 ) + lambda_kd * L_KD

low selects the frequencies up to (block - 1) / 2 on both axes, in the half-plane that determines a real
map; norm is a layer norm over all values of an image, which also removes the larger scale of a larger
map's transform. W has no bias, so it can follow the transform (both are linear), where there are fewer
values. Only frequencies that both maps contain in full count, below half of the smaller side: a 2x2 map
has only its mean.

Alternatives that the text permits: a learned filter instead of the block, separate amplitude and phase,
the DCT, a projection of the teacher's spectrum, the alignment before the transform (equal to ours apart
from its bias and non-linearity).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from stages.methods.base import Batch, Method
from stages.methods.kd import kd_loss
from stages.methods.parts.argument_checks import (
    require_above,
    require_at_least,
    require_at_most,
    require_one_of,
)
from stages.methods.parts.stage_pairs import Shape, paired_stage_ends
from stages.models.features import Features, FeatureSpec, Needs

Representation = Literal["log_magnitude", "complex"]

TINY = 1e-12
"""Added to the squared magnitude, because the root has no gradient at 0."""


class Uhkd(Method):
    """Match the low frequencies of the maps at the stage ends.

    The loss is given in the module's equations, all of it in float32. Learns W for each pair of ends.

    Args:
        student: The student's shapes.
        teacher: The teacher's shapes.
        ends: The number of deepest pairs of stage ends, 1 to 4.
        block: Frequencies per axis, from the lowest, limited to those that the smaller map contains.
        representation: The compared part of a coefficient; "complex": its real and imaginary part.
        lambda_kd: Weight of the KD term.
        kd_temperature: Temperature of the KD term.

    Raises:
        ModelError: A network has no stage ends.
        ValueError: An argument is out of range.

    Example:
        >>> import timm, torch
        >>> from stages.methods.observed import run_networks
        >>> from stages.methods.uhkd import Uhkd
        >>> from stages.models.observer import Observer
        >>> student = Observer(timm.create_model("test_byobnet"), Uhkd.needs())
        >>> teacher = Observer(timm.create_model("test_resnet"), Uhkd.needs()).eval()
        >>> method = Uhkd(student.spec(64, 3), teacher.spec(64, 3), block=3)
        >>> images, labels = torch.rand(4, 3, 64, 64), torch.tensor([1, 0, 2, 1])
        >>> loss = method(*run_networks(student, teacher, images, labels))
        >>> loss.backward()
    """

    name = "uhkd"

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        ends: int = 4,
        block: int = 7,
        representation: Representation = "log_magnitude",
        lambda_kd: float = 1.0,
        kd_temperature: float = 4.0,
    ) -> None:
        super().__init__(student, teacher)
        require_at_least(1, ends=ends, block=block)
        require_at_most(4, ends=ends)
        require_one_of(get_args(Representation), representation=representation)
        require_at_least(0.0, lambda_kd=lambda_kd)
        require_above(0.0, kd_temperature=kd_temperature)
        self.lambda_kd, self.kd_temperature = lambda_kd, kd_temperature
        self.pairs = nn.ModuleList(
            SpectralDistance(*shapes, block, representation)
            for shapes in paired_stage_ends("uhkd", student, teacher)[-ends:]
        )

    @classmethod
    @override
    def needs(cls, **_arguments: Any) -> Needs:
        """List the stage ends; see `Method.needs`."""
        return Needs(ends=True)

    @override
    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Compute the loss of one step; see `Method.forward`."""
        count = len(self.pairs)
        ends = zip(self.pairs, student.ends[-count:], teacher.ends[-count:], strict=True)
        with torch.autocast(student.logits.device.type, enabled=False):
            loss = torch.stack(
                [distance(student_map, teacher_map) for distance, student_map, teacher_map in ends]
            ).mean()
        if self.lambda_kd > 0.0:
            loss = loss + self.lambda_kd * kd_loss(student.logits, teacher.logits, self.kd_temperature)
        return loss


class SpectralDistance(nn.Module):
    """Compute the mean squared error of the normalized low frequencies of two maps.

    Args:
        student: (C_S, H_S, W_S) of the student's map.
        teacher: (C_T, H_T, W_T) of the teacher's map.
        block: Frequencies per axis, from the lowest.
        representation: The compared part of a coefficient.
    """

    def __init__(self, student: Shape, teacher: Shape, block: int, representation: Representation) -> None:
        super().__init__()
        self.representation = representation
        self.highest = tuple(
            (min(block, *sides) - 1) // 2 for sides in zip(student[1:], teacher[1:], strict=True)
        )
        self.projector = nn.Linear(student[0], teacher[0], bias=False)

    @override
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the distance.

        Args:
            student: (B, C_S, H_S, W_S).
            teacher: (B, C_T, H_T, W_T).

        Returns:
            A float32 scalar.
        """
        student_spectrum, teacher_spectrum = (self._low(maps.float()) for maps in (student, teacher))
        student_spectrum = self.projector(student_spectrum.transpose(1, -1)).transpose(1, -1)
        return functional.mse_loss(self._normalized(student_spectrum), self._normalized(teacher_spectrum))

    def _low(self, maps: Tensor) -> Tensor:
        """Compute the coefficients of low frequencies: (B, C, H, W) to (B, C, 2v+1, h+1, 2).

        The vertical frequencies are 0 to v, then -v to -1, the horizontal ones 0 to h; the real and the
        imaginary part are last.
        """
        vertical, horizontal = self.highest
        spectrum = torch.view_as_real(torch.fft.rfft2(maps, norm="ortho"))[:, :, :, : horizontal + 1]
        rows = spectrum.shape[2]
        return torch.cat([spectrum[:, :, : vertical + 1], spectrum[:, :, rows - vertical :]], dim=2)

    def _normalized(self, low: Tensor) -> Tensor:
        if self.representation == "log_magnitude":
            low = torch.log1p((low.square().sum(-1) + TINY).sqrt())
        return functional.layer_norm(low, low.shape[1:])
