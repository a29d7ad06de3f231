"""Batches of a split on the device: out of the device's own memory for a small set, streamed else."""

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
from stages.training.settings import RecipeSettings

RESIDENT_BYTES = 1 << 30
"""A split up to this size is kept on the CPU's side as one tensor; on a GPU up to a quarter of its memory."""


class Supply:
    """One split, or a part of it, as batches on the device.

    count: its images. labels: int64 (count) on the CPU.
    waited_s: how long the reader of `batches` has waited for images read from disk.
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
        if self.count * math.prod(split.images.shape) <= room_bytes(device):
            # (n, height, width, channels), of which a batch is an NCHW view in channels_last order.
            self._images = torch.from_numpy(np.ascontiguousarray(split.images.batch(chosen))).to(device)
            self._labels = torch.from_numpy(self.labels).to(device)

    @property
    def resident(self) -> bool:
        return self._images is not None

    def batches(
        self, batch_size: int, *, order: np.ndarray | None = None, drop_last: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 (n, channels, height, width) and int64 (n) on the device, in `order` (of 0..count-1)."""
        if self._images is None:
            yield from self._streamed(batch_size, order, drop_last)
            return
        images, labels = self._images, self._labels
        ordered = None if order is None else torch.from_numpy(order).to(self.device)
        count = self.count if ordered is None else len(ordered)
        for start in range(0, count - batch_size + 1 if drop_last else count, batch_size):
            if ordered is None:
                batch, truth = images[start : start + batch_size], labels[start : start + batch_size]
            else:
                which = ordered[start : start + batch_size]
                batch, truth = images[which], labels[which]
            yield batch.permute(0, 3, 1, 2), truth

    def _streamed(
        self, batch_size: int, order: np.ndarray | None, drop_last: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        chosen = self._chosen if order is None else self._chosen[order]
        cuda = self.device.type == "cuda"
        source = iter(batching.batches(self._split, batch_size, order=chosen, drop_last=drop_last))
        while True:
            begun = time.perf_counter()
            found = next(source, None)
            self.waited_s += time.perf_counter() - begun
            if found is None:
                return
            images, labels = torch.from_numpy(found[0]), torch.from_numpy(found[1])
            if cuda:
                images, labels = images.pin_memory(), labels.pin_memory()
            yield (
                images.to(self.device, non_blocking=cuda).permute(0, 3, 1, 2),
                labels.to(self.device, non_blocking=cuda),
            )


def training_supply(
    data: DataSet, recipe: RecipeSettings, *, split_seed: int, device: torch.device
) -> Supply:
    """The training images, or of every class the share that the recipe asks for."""
    part = None
    if recipe.fraction < 1.0:
        part = stratified(data.train.labels, recipe.fraction, split_seed)
    return Supply(data.train, device, part=part)


class Normalise:
    """Images on the 0..255 scale to what a network was trained on: (image * scale - mean) / std, at the
    network's own size if it has one."""

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
        """uint8 or float32 (n, channels, height, width) to float32 of the same shape, or of the side of
        `network_size`."""
        found = torch.addcmul(self.offset, images.to(torch.float32), self.factor)
        if self.preprocessing.network_size is not None:
            found = resize_to(found, self.preprocessing.network_size)
        return found.contiguous(memory_format=self.memory_format)


def room_bytes(device: torch.device) -> int:
    """How much may be kept on the device for speed alone."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    return RESIDENT_BYTES
