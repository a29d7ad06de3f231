"""One random view of each image, made on the device for a whole batch at once.

Every random number comes from a generator that is seeded by (seed, epoch), so a resumed run needs
no state of a loader. A batch on the device stays there: nothing is read back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stages.training.settings import AugmentSettings


@dataclass(frozen=True)
class View:
    """A batch as the networks see it.

    images: float32 (n, channels, side, side) on the 0..255 scale, channels_last in memory.
    labels: int64 (n), the label of each image's larger part.
    other, share: under mixup and cutmix the second label of each image, and the first one's share
        in the target: share * one_hot(first) + (1 - share) * one_hot(other). Else None and 1.
    first: int64 (n), the labels that `share` belongs to.
    """

    images: Tensor
    labels: Tensor
    first: Tensor
    other: Tensor | None = None
    share: float = 1.0

    def cross_entropy(self, logits: Tensor, smoothing: float) -> Tensor:
        """Mean cross-entropy of float32 (n, classes) with the possibly mixed targets."""
        loss = functional.cross_entropy(logits, self.first, label_smoothing=smoothing)
        if self.other is None:
            return loss
        mixed = functional.cross_entropy(logits, self.other, label_smoothing=smoothing)
        return self.share * loss + (1.0 - self.share) * mixed


class Augmentation:
    """Random views of one epoch's batches; the same (seed, epoch, rank) gives the same views.

    fill: float32 (channels), the mean image value on the 0..255 scale: what erased parts become.
    """

    def __init__(
        self,
        settings: AugmentSettings,
        *,
        seed: int,
        epoch: int,
        rank: int,
        device: torch.device,
        fill: Tensor,
    ) -> None:
        self.settings = settings
        self.device = device
        self.fill = fill
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(seed_of(seed, epoch, "views", rank))
        # Mixing takes a few numbers a batch that the host needs: its own generator, no read-back.
        self.host = np.random.default_rng(seed_of(seed, epoch, "mixing", rank))

    def __call__(self, images: Tensor, labels: Tensor) -> View:
        """uint8 (n, channels, side, side) and int64 (n), both on the device, to a View."""
        wanted = self.settings
        warps = wanted.rotate_deg or wanted.scale or wanted.translate or wanted.crop
        if wanted.pad or (wanted.flip and not warps):
            images = self._shift_and_flip(images, flip=wanted.flip and not warps)
        batch = images.to(torch.float32)
        if warps:
            batch = self._warp(batch)
        if wanted.brightness or wanted.contrast:
            batch = self._light(batch)
        if wanted.erase:
            batch = self._erase(batch)
        return self._mix(batch, labels)

    def _uniform(self, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        drawn = torch.rand(count, generator=self.generator, device=self.device)
        return drawn * (high - low) + low

    def _below(self, count: int, limit: int) -> Tensor:
        return torch.randint(limit, (count,), generator=self.generator, device=self.device)

    def _coins(self, count: int) -> Tensor:
        return self._below(count, 2).bool()

    def _shift_and_flip(self, images: Tensor, *, flip: bool) -> Tensor:
        """Padding with black, a random crop and the mirror, in one gather of whole pixels."""
        count, _, height, width = images.shape
        pad = self.settings.pad
        rows = torch.arange(height, device=self.device).expand(count, height)
        columns = torch.arange(width, device=self.device).expand(count, width)
        if flip:
            columns = torch.where(self._coins(count)[:, None], width - 1 - columns, columns)
        if pad:
            rows = rows + self._below(count, 2 * pad + 1)[:, None]
            columns = columns + self._below(count, 2 * pad + 1)[:, None]
            images = functional.pad(images, (pad, pad, pad, pad))
        which = torch.arange(count, device=self.device)[:, None, None]
        # Indexed as (n, height, width, channels): one pixel's channels lie together in memory.
        gathered = images.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
        return gathered.permute(0, 3, 1, 2)

    def _warp(self, batch: Tensor) -> Tensor:
        """Mirror, resized crop, rotation, zoom and shift of each image by one affine map.

        The map takes output places to input places (both -1..1), so a zoom by z divides by z.
        Outside the image lies black.
        """
        count = len(batch)
        wanted = self.settings
        angle = self._uniform(count, -1.0, 1.0) * math.radians(wanted.rotate_deg)
        # Symmetric in the logarithm: enlarging by 1 + s is as likely as shrinking by it.
        zoom = torch.exp(self._uniform(count, -1.0, 1.0) * math.log1p(wanted.scale))
        shift_x = self._uniform(count, -1.0, 1.0) * 2.0 * wanted.translate
        shift_y = self._uniform(count, -1.0, 1.0) * 2.0 * wanted.translate
        wide = high = torch.ones(count, device=self.device)
        left = top = torch.zeros(count, device=self.device)
        if wanted.crop:
            # Area and aspect as in Inception's crop (Szegedy et al., 2015): 3/4..4/3 in the log.
            area = self._uniform(count, wanted.crop, 1.0)
            aspect = torch.exp(self._uniform(count, -1.0, 1.0) * math.log(4.0 / 3.0))
            wide = torch.sqrt(area * aspect).clamp(max=1.0)
            high = torch.sqrt(area / aspect).clamp(max=1.0)
            left = self._uniform(count, -1.0, 1.0) * (1.0 - wide)
            top = self._uniform(count, -1.0, 1.0) * (1.0 - high)
        mirror = torch.ones(count, device=self.device)
        if wanted.flip:
            mirror = torch.where(self._coins(count), -1.0, 1.0)
        cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        theta = torch.stack(
            [
                torch.stack(
                    [cosine * wide * mirror, -sine * high, cosine * left - sine * top - shift_x], dim=1
                ),
                torch.stack(
                    [sine * wide * mirror, cosine * high, sine * left + cosine * top - shift_y], dim=1
                ),
            ],
            dim=1,
        )
        grid = functional.affine_grid(theta, list(batch.shape), align_corners=False)
        warped = functional.grid_sample(
            batch, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        return warped.contiguous(memory_format=torch.channels_last)

    def _light(self, batch: Tensor) -> Tensor:
        """Contrast about each image's mean, then brightness, clamped to 0..255 (as torchvision)."""
        count = len(batch)
        if self.settings.contrast:
            factor = 1.0 + self._uniform(count, -1.0, 1.0)[:, None, None, None] * self.settings.contrast
            mean = batch.mean(dim=(1, 2, 3), keepdim=True)
            batch = torch.lerp(mean, batch, factor).clamp_(0.0, 255.0)
        if self.settings.brightness:
            factor = 1.0 + self._uniform(count, -1.0, 1.0)[:, None, None, None] * self.settings.brightness
            batch = (batch * factor).clamp_(0.0, 255.0)
        return batch

    def _erase(self, batch: Tensor) -> Tensor:
        """A rectangle of 2 % to 33 % of the area, aspect 0.3 to 3.3 (Zhong et al., 2020)."""
        count, _, height, width = batch.shape
        area = self._uniform(count, 0.02, 0.33) * height * width
        aspect = torch.exp(self._uniform(count, -1.0, 1.0) * math.log(3.3))
        high = torch.sqrt(area * aspect).round().clamp(1, height)
        wide = torch.sqrt(area / aspect).round().clamp(1, width)
        top = (self._uniform(count) * (height - high + 1)).floor()
        left = (self._uniform(count) * (width - wide + 1)).floor()
        # An image that is let off gets a rectangle of no height.
        high = high * (self._uniform(count) < self.settings.erase)
        rows = torch.arange(height, device=self.device)[None, :]
        columns = torch.arange(width, device=self.device)[None, :]
        in_rows = (rows >= top[:, None]) & (rows < (top + high)[:, None])
        in_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
        blanked = in_rows[:, None, :, None] & in_columns[:, None, None, :]
        return torch.where(blanked, self.fill[None, :, None, None], batch)

    def _mix(self, batch: Tensor, labels: Tensor) -> View:
        """Mixup (Zhang et al., 2018) or cutmix (Yun et al., 2019); with both, either by a coin.

        The partner of each image is its mirror image in the batch, which is in random order.
        """
        mixup, cutmix = self.settings.mixup, self.settings.cutmix
        if not (mixup or cutmix) or len(batch) < 2:
            return View(batch, labels, labels)
        cuts = bool(cutmix) and (not mixup or self.host.random() < 0.5)
        share = float(self.host.beta(cutmix, cutmix) if cuts else self.host.beta(mixup, mixup))
        if cuts:
            top, bottom, left, right = self._box(batch.shape[2], batch.shape[3], share)
            partners = batch[:, :, top:bottom, left:right].flip(0)
            batch[:, :, top:bottom, left:right] = partners
            share = 1.0 - (bottom - top) * (right - left) / (batch.shape[2] * batch.shape[3])
        else:
            batch = torch.lerp(batch.flip(0), batch, share)
        other = labels.flip(0)
        return View(batch, labels if share >= 0.5 else other, labels, other, share)

    def _box(self, height: int, width: int, share: float) -> tuple[int, int, int, int]:
        """A box of (1 - share) of the area about a random centre, cut to the image."""
        side = math.sqrt(1.0 - share)
        high, wide = round(height * side), round(width * side)
        middle_y, middle_x = int(self.host.integers(height)), int(self.host.integers(width))
        top, left = max(0, middle_y - high // 2), max(0, middle_x - wide // 2)
        return top, min(height, middle_y - high // 2 + high), left, min(width, middle_x - wide // 2 + wide)


def seed_of(seed: int, epoch: int, purpose: str, rank: int = 0) -> int:
    """A 63-bit seed for one purpose in one epoch: neighbours share nothing."""
    words = [seed, epoch, rank, *purpose.encode()]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def order_of(count: int, seed: int, epoch: int) -> np.ndarray:
    """The epoch's order of the training images: int64 (count), the same for every process."""
    return np.random.default_rng(seed_of(seed, epoch, "order")).permutation(count)
