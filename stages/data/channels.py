"""Channels of a set: how many it has, and their mean and standard deviation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import DataError
from stages.data.images import Images, grey
from stages.data.raw import RawData, RawSplit

LOOKED_AT = 20_000
"""So many images of a set of files are looked at to find its channels, mean and deviation."""

_CHUNK = 512


def evenly_spread(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` indices, evenly spread, sorted (int64)."""
    if count <= most:
        return np.arange(count)
    return np.arange(most) * count // most


def own_channels(raw: RawData) -> int:
    """1 if all images are grey, else 3. Of files the headers tell, of 20,000 in all at the most."""
    parts = list(raw.parts().values())
    return 1 if all(_all_grey(part) for part in parts) else 3


def _all_grey(part: RawSplit) -> bool:
    if isinstance(part.images, np.ndarray):
        return part.images.ndim == 3 or part.images.shape[3] == 1
    images: Sequence[Path] | Sequence[np.ndarray] = part.images
    # A generator: the first coloured image settles it.
    return all(
        grey(image) if isinstance(image, Path) else image.ndim == 2 or image.shape[2] == 1
        for image in (images[i] for i in evenly_spread(len(images), LOOKED_AT))
    )


def mean_and_std(images: Images, where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and (population) standard deviation over all pixels, on the 0..1 scale.

    Counted exactly, in whole numbers, by the histogram of each channel, so neither the order of the images
    nor the size of the steps shows in the result. Raises DataError for a channel without any contrast.
    """
    channels = images.shape[2]
    histogram = np.zeros((channels, 256), np.int64)
    for start in range(0, len(images), _CHUNK):
        batch = images.batch(np.arange(start, min(start + _CHUNK, len(images))))
        for channel in range(channels):
            histogram[channel] += np.bincount(batch[..., channel].reshape(-1), minlength=256)
    values = np.arange(256)
    means, deviations = [], []
    for channel, counts in enumerate(histogram):
        number, total = int(counts.sum()), int((counts * values).sum())
        squares = int((counts * values**2).sum())
        spread = number * squares - total * total
        if spread == 0:
            raise DataError(
                "the training images have no contrast",
                where=where,
                why=f"every pixel of channel {channel} is {total // number}, so its deviation is 0",
                hint="check the image files; if this is meant, set data.mean and data.std",
            )
        means.append(total / number / 255.0)
        deviations.append(math.sqrt(spread) / number / 255.0)
    return tuple(means), tuple(deviations)
