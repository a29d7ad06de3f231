"""The test images that a device is sent to measure top-1."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from stages.data import load as data
from stages.data.channels import evenly_spread
from stages.devices.settings import IMAGES_BYTES

CHUNK = 1024
"""Images decoded at once."""


def write(settings: SimpleNamespace, count: int | None, file: Path) -> int:
    """Write test images, evenly spread, into one `.npy` of uint8 (n, H, W, C).

    Equal settings and data give equal bytes.

    Args:
        settings: with `data`.
        count: how many; None: as many as IMAGES_BYTES hold.
        file: the `.npy`.

    Returns:
        How many images were written.

    Raises:
        DataError: the images cannot be read.
    """
    test = data.load(settings.data).test
    most = max(1, IMAGES_BYTES // math.prod(test.images.shape)) if count is None else count
    chosen = evenly_spread(len(test), most)
    shape = (len(chosen), *test.images.shape)
    images = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    for start in range(0, len(chosen), CHUNK):
        images[start : start + CHUNK] = test.images.batch(chosen[start : start + CHUNK])
    images.flush()
    return len(chosen)
