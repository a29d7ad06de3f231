"""A set's number of channels, and their mean and standard deviation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import DataError
from stages.data.images import Images, is_grey
from stages.data.raw import RawData, RawSplit

SAMPLE_SIZE = 20_000
"""At most this many images of a set of files determine its channels, mean and standard deviation."""

_CHUNK = 512
"""Images decoded at a time."""


def evenly_spread(count: int, most: int) -> np.ndarray:
    """Return at most `most` of `count` indices, evenly spread, sorted, int64."""
    if count <= most:
        return np.arange(count)
    return np.arange(most) * count // most


def native_channels(raw: RawData) -> int:
    """Return 1 if all images are grey, otherwise 3.

    For image files only the headers are read, of at most `SAMPLE_SIZE` files a split.
    """
    parts = list(raw.parts().values())
    return 1 if all(_all_grey(part) for part in parts) else 3


def _all_grey(part: RawSplit) -> bool:
    if isinstance(part.images, np.ndarray):
        return part.images.ndim == 3 or part.images.shape[3] == 1
    images: Sequence[Path] | Sequence[np.ndarray] = part.images
    # A generator: the first coloured image decides.
    return all(
        is_grey(image) if isinstance(image, Path) else image.ndim == 2 or image.shape[2] == 1
        for image in (images[i] for i in evenly_spread(len(images), SAMPLE_SIZE))
    )


def mean_and_std(images: Images, where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and (population) standard deviation of each channel over all pixels.

    The sums are exact: they are integers from each channel's histogram. The order of the images and the size
    of the steps do not change the result.

    Args:
        images: The images, uint8.
        where: The set, for the error message.

    Returns:
        The means and the standard deviations on the 0..1 scale, one value a channel.

    Raises:
        DataError: All pixels of a channel are equal.
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
                why=f"every pixel of channel {channel} is {total // number}, so its standard deviation is 0",
                hint="check the image files; if this is intended, set data.mean and data.std",
            )
        means.append(total / number / 255.0)
        deviations.append(math.sqrt(spread) / number / 255.0)
    return tuple(means), tuple(deviations)
