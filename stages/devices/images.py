"""The test images that a device is sent, to tell top-1 there."""

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


def write(settings: SimpleNamespace, asked: int | None, file: Path) -> int:
    """Writes test images, evenly spread, as one `.npy` of uint8 (n, H, W, C); returns n.

    settings: with `data`. asked: how many; None means as many as IMAGES_BYTES hold. Equal settings
    and data give equal bytes. Raises DataError as `data.load` does.
    """
    test = data.load(settings.data).test
    most = max(1, IMAGES_BYTES // math.prod(test.images.shape)) if asked is None else asked
    chosen = evenly_spread(len(test), most)
    shape = (len(chosen), *test.images.shape)
    images = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    for start in range(0, len(chosen), CHUNK):
        images[start : start + CHUNK] = test.images.batch(chosen[start : start + CHUNK])
    images.flush()
    return len(chosen)
