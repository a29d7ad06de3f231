"""UHKD: the low frequencies of unlike networks' maps are brought together, in our reading of its
abstract.

arXiv 2510.24116. Public to us are the abstracts: the teacher's feature goes through a Fourier
transform to a compact spectrum, the student's through a learned alignment into the same space, at
several levels; the loss is the cross-entropy, a KL on the logits and the mean squared error between
the spectra. Cut-off, levels, weights and what of a coefficient is compared are not public to us.
Our reading, for each pair of stage ends:

    X_T   = low( rfft2(F_T) ),   X_S = W low( rfft2(F_S) )       orthonormal transform, W a 1x1 convolution
    R     = log(1 + |X|), or the real and the imaginary part of X
    L     = mean over pairs of mean( (norm(R_S) - norm(R_T))^2 ) + lambda_kd * L_KD

low keeps the frequencies up to (block - 1) / 2 on both axes, in the half-plane that a real map
determines; norm is a layer norm over all of an image's values, which also takes away that the
transform of a larger map is larger. W has no bias, so that it may come after the transform (both
are linear), where there are fewer values. A frequency counts that both maps hold in full, below
half of the smaller side: a map of 2x2 keeps its mean alone.

Alternatives that the text allows: a learned filter in place of the block, amplitude and phase
apart, the DCT, the teacher's spectrum projected as well, the alignment before the transform (equal
to ours but for its bias and non-linearity).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.methods.base import Batch, Method
from stages.methods.kd import kd_loss
from stages.methods.parts.ends import Shape, paired
from stages.methods.settings import MethodSettings, UhkdSettings
from stages.models.features import Features, FeatureSpec, Needs

TINY = 1e-12
"""Added to the squared magnitude, whose root has no gradient at 0."""


class Uhkd(Method):
    """The loss of the module's equations, all of it in float32. Learns W for each pair of ends."""

    name = "uhkd"

    def __init__(self, settings: UhkdSettings, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Raises ModelError for a network without stage ends."""
        super().__init__(settings, student, teacher)
        self.settings = settings
        pairs = paired("uhkd", student, teacher)[-settings.ends :]
        self.pairs = nn.ModuleList(
            SpectralDistance(*pair, settings.block, settings.representation) for pair in pairs
        )

    @classmethod
    def needs(cls, settings: MethodSettings) -> Needs:
        return Needs(ends=True)

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        count = len(self.pairs)
        ends = zip(self.pairs, student.ends[-count:], teacher.ends[-count:], strict=True)
        with torch.autocast(student.logits.device.type, enabled=False):
            loss = torch.stack([pair(ours, theirs) for pair, ours, theirs in ends]).mean()
        if self.settings.lambda_kd > 0.0:
            kd = kd_loss(student.logits, teacher.logits, self.settings.kd_temperature)
            loss = loss + self.settings.lambda_kd * kd
        return loss


class SpectralDistance(nn.Module):
    """Mean squared error of two maps' normalised low frequencies: (B, C_S, H, W), (B, C_T, H', W') ->
    float32 scalar."""

    def __init__(
        self, student: Shape, teacher: Shape, block: int, representation: Literal["log_magnitude", "complex"]
    ) -> None:
        super().__init__()
        self.representation = representation
        self.highest = tuple(
            (min(block, *sides) - 1) // 2 for sides in zip(student[1:], teacher[1:], strict=True)
        )
        self.projector = nn.Linear(student[0], teacher[0], bias=False)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        ours, theirs = (self._low(maps.float()) for maps in (student, teacher))
        ours = self.projector(ours.transpose(1, -1)).transpose(1, -1)
        return functional.mse_loss(self._normalised(ours), self._normalised(theirs))

    def _low(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2v+1, h+1, 2): the coefficients of vertical frequency 0 to v, then -v to
        -1, and horizontal 0 to h; real and imaginary part last."""
        vertical, horizontal = self.highest
        spectrum = torch.view_as_real(torch.fft.rfft2(maps, norm="ortho"))[:, :, :, : horizontal + 1]
        rows = spectrum.shape[2]
        return torch.cat([spectrum[:, :, : vertical + 1], spectrum[:, :, rows - vertical :]], dim=2)

    def _normalised(self, low: Tensor) -> Tensor:
        if self.representation == "log_magnitude":
            low = torch.log1p((low.square().sum(-1) + TINY).sqrt())
        return functional.layer_norm(low, low.shape[1:])
