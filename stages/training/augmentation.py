"""One random view of each image, made on the device for a whole batch at once.

Every random number comes from a generator that is seeded by (seed, epoch). A resumed run therefore needs
no state of a loader. A batch on the device stays there: nothing is copied back to the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stages.training.seeds import derive_seed


@dataclass(frozen=True)
class Augmentation:
    """Which random changes a view makes, and how strong they are; by default none.

    Defaults and ranges are those of the profile (`AugmentSettings`).

    Example:
        >>> augmentation = Augmentation(pad=4, flip=True)
        >>> augmentation.is_identity
        False

    Attributes:
        pad: Pixels of black padding on each side before a random crop to the image's size.
        flip: Whether images are mirrored left to right, each with probability 0.5.
        rotate_deg: Largest angle of rotation either way, in degrees.
        scale: Largest zoom in or out, as a share, 0..1.
        translate: Largest shift, as a share of the side, 0..1.
        crop: Smallest share of the area in a random resized crop, 0..1; 0 for no crop.
        brightness: Largest change of brightness, as a share, 0..1.
        contrast: Largest change of contrast, as a share, 0..1.
        erase: Probability that a random rectangle is blanked.
        mixup: Alpha of mixup's Beta distribution; 0 for no mixup.
        cutmix: Alpha of cutmix's Beta distribution; 0 for no cutmix.
    """

    pad: int = 0
    flip: bool = False
    rotate_deg: float = 0.0
    scale: float = 0.0
    translate: float = 0.0
    crop: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def is_identity(self) -> bool:
        """Whether every image looks the same in every epoch."""
        return self == Augmentation()


@dataclass(frozen=True)
class View:
    """A batch as the networks see it.

    Attributes:
        images: float32 (n, channels, side, side) on the 0..255 scale, channels_last in memory.
        labels: int64 (n), the label of each image's larger part.
        first: int64 (n), the labels that `share` belongs to.
        other: int64 (n), the second label of each image under mixup and cutmix, otherwise None.
        share: Share of the first label in the target, which is
            share * one_hot(first) + (1 - share) * one_hot(other); 1 without mixing.
    """

    images: Tensor
    labels: Tensor
    first: Tensor
    other: Tensor | None = None
    share: float = 1.0

    def cross_entropy(self, logits: Tensor, smoothing: float) -> Tensor:
        """Return the mean cross-entropy with the possibly mixed targets.

        Args:
            logits: Float (n, classes).
            smoothing: Share of the target that is spread over all classes, 0..1.

        Returns:
            A scalar.
        """
        loss = functional.cross_entropy(logits, self.first, label_smoothing=smoothing)
        if self.other is None:
            return loss
        mixed = functional.cross_entropy(logits, self.other, label_smoothing=smoothing)
        return self.share * loss + (1.0 - self.share) * mixed


class RandomViews:
    """Random views of one epoch's batches; the same (seed, epoch, rank) gives the same views.

    Args:
        augmentation: Which changes are made.
        seed: Seed of the training.
        epoch: The epoch, from 1.
        rank: Index of the process, from 0.
        device: Where the batches are.
        fill: float32 (channels), the mean image value on the 0..255 scale: erased parts get it.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        *,
        seed: int,
        epoch: int,
        rank: int = 0,
        device: torch.device,
        fill: Tensor,
    ) -> None:
        self.augmentation = augmentation
        self.device = device
        self.fill = fill
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(derive_seed(seed, epoch, "views", rank))
        # Mixing takes a few numbers a batch that the host needs: its own generator, nothing is copied back.
        self.host = np.random.default_rng(derive_seed(seed, epoch, "mixing", rank))

    def __call__(self, images: Tensor, labels: Tensor) -> View:
        """Return a random view of a batch.

        Args:
            images: uint8 (n, channels, side, side) on the device.
            labels: int64 (n) on the device.
        """
        chosen = self.augmentation
        warps = chosen.rotate_deg or chosen.scale or chosen.translate or chosen.crop
        if chosen.pad or (chosen.flip and not warps):
            images = self._shift_and_flip(images, flip=chosen.flip and not warps)
        batch = images.to(torch.float32)
        if warps:
            batch = self._warp(batch)
        if chosen.brightness or chosen.contrast:
            batch = self._change_light(batch)
        if chosen.erase:
            batch = self._erase(batch)
        return self._mix(batch, labels)

    def _uniform(self, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        drawn = torch.rand(count, generator=self.generator, device=self.device)
        return drawn * (high - low) + low

    def _integers(self, count: int, limit: int) -> Tensor:
        return torch.randint(limit, (count,), generator=self.generator, device=self.device)

    def _coin_flips(self, count: int) -> Tensor:
        return self._integers(count, 2).bool()

    def _shift_and_flip(self, images: Tensor, *, flip: bool) -> Tensor:
        """Pad with black, crop at random and mirror, in one gather of whole pixels."""
        count, _, height, width = images.shape
        pad = self.augmentation.pad
        rows = torch.arange(height, device=self.device).expand(count, height)
        columns = torch.arange(width, device=self.device).expand(count, width)
        if flip:
            columns = torch.where(self._coin_flips(count)[:, None], width - 1 - columns, columns)
        if pad:
            rows = rows + self._integers(count, 2 * pad + 1)[:, None]
            columns = columns + self._integers(count, 2 * pad + 1)[:, None]
            images = functional.pad(images, (pad, pad, pad, pad))
        which = torch.arange(count, device=self.device)[:, None, None]
        # Indexed as (n, height, width, channels): one pixel's channels are adjacent in memory.
        gathered = images.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
        return gathered.permute(0, 3, 1, 2)

    def _warp(self, batch: Tensor) -> Tensor:
        """Mirror, crop, rotate, zoom and shift each image by one affine map.

        The map takes output coordinates to input coordinates (both -1..1), so a zoom by z divides by z.
        Pixels outside the image are black.
        """
        count = len(batch)
        chosen = self.augmentation
        angle = self._uniform(count, -1.0, 1.0) * math.radians(chosen.rotate_deg)
        # Symmetric in the logarithm: enlarging by 1 + s is as likely as shrinking by it.
        zoom = torch.exp(self._uniform(count, -1.0, 1.0) * math.log1p(chosen.scale))
        shift_x = self._uniform(count, -1.0, 1.0) * 2.0 * chosen.translate
        shift_y = self._uniform(count, -1.0, 1.0) * 2.0 * chosen.translate
        wide = high = torch.ones(count, device=self.device)
        left = top = torch.zeros(count, device=self.device)
        if chosen.crop:
            # Area and aspect ratio like Inception's crop (Szegedy et al., 2015): 3/4..4/3 in the logarithm.
            area = self._uniform(count, chosen.crop, 1.0)
            aspect = torch.exp(self._uniform(count, -1.0, 1.0) * math.log(4.0 / 3.0))
            wide = torch.sqrt(area * aspect).clamp(max=1.0)
            high = torch.sqrt(area / aspect).clamp(max=1.0)
            left = self._uniform(count, -1.0, 1.0) * (1.0 - wide)
            top = self._uniform(count, -1.0, 1.0) * (1.0 - high)
        mirror = torch.ones(count, device=self.device)
        if chosen.flip:
            mirror = torch.where(self._coin_flips(count), -1.0, 1.0)
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

    def _change_light(self, batch: Tensor) -> Tensor:
        """Change contrast about each image's mean, then brightness; clamp to 0..255 (like torchvision)."""
        count = len(batch)
        if self.augmentation.contrast:
            factor = 1.0 + self._uniform(count, -1.0, 1.0)[:, None, None, None] * self.augmentation.contrast
            mean = batch.mean(dim=(1, 2, 3), keepdim=True)
            batch = torch.lerp(mean, batch, factor).clamp_(0.0, 255.0)
        if self.augmentation.brightness:
            factor = 1.0 + self._uniform(count, -1.0, 1.0)[:, None, None, None] * self.augmentation.brightness
            batch = (batch * factor).clamp_(0.0, 255.0)
        return batch

    def _erase(self, batch: Tensor) -> Tensor:
        """Blank a rectangle of 2 % to 33 % of the area, aspect ratio 0.3 to 3.3 (Zhong et al., 2020)."""
        count, _, height, width = batch.shape
        area = self._uniform(count, 0.02, 0.33) * height * width
        aspect = torch.exp(self._uniform(count, -1.0, 1.0) * math.log(3.3))
        high = torch.sqrt(area * aspect).round().clamp(1, height)
        wide = torch.sqrt(area / aspect).round().clamp(1, width)
        top = (self._uniform(count) * (height - high + 1)).floor()
        left = (self._uniform(count) * (width - wide + 1)).floor()
        # An image that is not erased gets a rectangle of no height.
        high = high * (self._uniform(count) < self.augmentation.erase)
        rows = torch.arange(height, device=self.device)[None, :]
        columns = torch.arange(width, device=self.device)[None, :]
        in_rows = (rows >= top[:, None]) & (rows < (top + high)[:, None])
        in_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
        blanked = in_rows[:, None, :, None] & in_columns[:, None, None, :]
        return torch.where(blanked, self.fill[None, :, None, None], batch)

    def _mix(self, batch: Tensor, labels: Tensor) -> View:
        """Apply mixup (Zhang et al., 2018) or cutmix (Yun et al., 2019); with both, a coin decides.

        The partner of each image is its mirror image in the batch, which is in random order.
        """
        mixup, cutmix = self.augmentation.mixup, self.augmentation.cutmix
        if not (mixup or cutmix) or len(batch) < 2:
            return View(batch, labels, labels)
        cuts = bool(cutmix) and (not mixup or self.host.random() < 0.5)
        share = float(self.host.beta(cutmix, cutmix) if cuts else self.host.beta(mixup, mixup))
        if cuts:
            top, bottom, left, right = self._random_box(batch.shape[2], batch.shape[3], share)
            partners = batch[:, :, top:bottom, left:right].flip(0)
            batch[:, :, top:bottom, left:right] = partners
            share = 1.0 - (bottom - top) * (right - left) / (batch.shape[2] * batch.shape[3])
        else:
            batch = torch.lerp(batch.flip(0), batch, share)
        other = labels.flip(0)
        return View(batch, labels if share >= 0.5 else other, labels, other, share)

    def _random_box(self, height: int, width: int, share: float) -> tuple[int, int, int, int]:
        """Return (top, bottom, left, right) of a box of (1 - share) of the area, cut to the image."""
        side = math.sqrt(1.0 - share)
        high, wide = round(height * side), round(width * side)
        middle_y, middle_x = int(self.host.integers(height)), int(self.host.integers(width))
        top, left = max(0, middle_y - high // 2), max(0, middle_x - wide // 2)
        return top, min(height, middle_y - high // 2 + high), left, min(width, middle_x - wide // 2 + wide)
