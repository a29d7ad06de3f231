"""Batches of a split on the device: from the device's memory for a small split, otherwise streamed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from stages.data import batching
from stages.data.load import DataSet, Split
from stages.data.preprocessing import Preprocessing
from stages.data.splits import stratified
from stages.models.network_input import resize_to

RESIDENT_BYTES = 1 << 30
"""Largest split that is kept in memory as one tensor on a CPU; on a GPU a quarter of its free memory."""


class Supply:
    """One split, or a part of it, as batches on the device.

    Args:
        split: Images and labels.
        device: Where the batches are needed.
        part: int64 indices of the split's images; None for all.

    Attributes:
        device: Where the batches are.
        labels: int64 (count), on the CPU.
        count: Number of images.
        waited_s: Seconds that the reader of `batches` has waited for images from disk.
    """

    def __init__(self, split: Split, device: torch.device, *, part: np.ndarray | None = None) -> None:
        chosen = np.arange(len(split.labels)) if part is None else part
        self.device = device
        self.labels = np.asarray(split.labels, dtype=np.int64)[chosen]
        self.count = len(chosen)
        self.waited_s = 0.0
        self._split = split
        self._chosen = chosen
        self._images: Tensor | None = None
        if self.count * math.prod(split.images.shape) <= cache_limit_bytes(device):
            # (n, height, width, channels), of which a batch is an NCHW view in channels_last order.
            self._images = torch.from_numpy(np.ascontiguousarray(split.images.batch(chosen))).to(device)
            self._labels = torch.from_numpy(self.labels).to(device)

    @property
    def resident(self) -> bool:
        """Whether all images are in the device's memory."""
        return self._images is not None

    def batches(
        self, batch_size: int, *, order: np.ndarray | None = None, drop_last: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images, uint8 (n, channels, height, width), and labels, int64 (n), on the device.

        Args:
            batch_size: Images a batch.
            order: int64 indices 0..count-1, which images in which order; None for all in the split's order.
            drop_last: Whether an incomplete last batch is left out.
        """
        if self._images is None:
            yield from self._streamed(batch_size, order, drop_last)
            return
        images, labels = self._images, self._labels
        device_order = None if order is None else torch.from_numpy(order).to(self.device)
        count = self.count if device_order is None else len(device_order)
        for start in range(0, count - batch_size + 1 if drop_last else count, batch_size):
            if device_order is None:
                batch, truth = images[start : start + batch_size], labels[start : start + batch_size]
            else:
                indices = device_order[start : start + batch_size]
                batch, truth = images[indices], labels[indices]
            yield batch.permute(0, 3, 1, 2), truth

    def _streamed(
        self, batch_size: int, order: np.ndarray | None, drop_last: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        chosen = self._chosen if order is None else self._chosen[order]
        cuda = self.device.type == "cuda"
        source = iter(batching.batches(self._split, batch_size, order=chosen, drop_last=drop_last))
        while True:
            started = time.perf_counter()
            batch = next(source, None)
            self.waited_s += time.perf_counter() - started
            if batch is None:
                return
            images, labels = torch.from_numpy(batch[0]), torch.from_numpy(batch[1])
            if cuda:
                images, labels = images.pin_memory(), labels.pin_memory()
            yield (
                images.to(self.device, non_blocking=cuda).permute(0, 3, 1, 2),
                labels.to(self.device, non_blocking=cuda),
            )


def training_supply(
    data: DataSet, device: torch.device, *, fraction: float = 1.0, split_seed: int = 0
) -> Supply:
    """Return the training images, or a share of them, stratified by class.

    Args:
        data: The data set.
        device: Where the batches are needed.
        fraction: Share of the training images, 0..1.
        split_seed: Seed of the choice.
    """
    part = stratified(data.train.labels, fraction, split_seed) if fraction < 1.0 else None
    return Supply(data.train, device, part=part)


class Normalise:
    """Normalises images on the 0..255 scale for one network: (image * scale - mean) / std.

    Images are resized to the network's size if it has its own.

    Args:
        preprocessing: The network's constants and size.
        device: Where the images are.
        channels_last: Whether the result is in NHWC order in memory.

    Attributes:
        fill: float32 (channels), the mean image value on the 0..255 scale.
    """

    def __init__(
        self, preprocessing: Preprocessing, device: torch.device, *, channels_last: bool = True
    ) -> None:
        self.preprocessing = preprocessing
        scale = float(preprocessing.scale)
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
        std = torch.tensor(preprocessing.std, dtype=torch.float64)
        self.factor = (scale / std).to(device, torch.float32)[None, :, None, None]
        self.offset = (-mean / std).to(device, torch.float32)[None, :, None, None]
        self.fill = (mean / scale).to(device, torch.float32)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor) -> Tensor:
        """Return normalised images.

        Args:
            images: uint8 or float32 (n, channels, height, width).

        Returns:
            float32 of the same shape, or with the side `network_size`.
        """
        normalised = torch.addcmul(self.offset, images.to(torch.float32), self.factor)
        if self.preprocessing.network_size is not None:
            normalised = resize_to(normalised, self.preprocessing.network_size)
        return normalised.contiguous(memory_format=self.memory_format)


def cache_limit_bytes(device: torch.device) -> int:
    """Return how many bytes may stay in the device's memory only for speed."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    return RESIDENT_BYTES
