"""Real image files and real set files, made small."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from PIL import Image


class MakeFolder(Protocol):
    def __call__(
        self, root: Path, classes: dict[str, int], *, seed: int = 0, suffix: str = ".png", mode: str = "RGB"
    ) -> Path: ...


@pytest.fixture
def make_folder() -> MakeFolder:
    def make(
        root: Path, classes: dict[str, int], *, seed: int = 0, suffix: str = ".png", mode: str = "RGB"
    ) -> Path:
        random = np.random.default_rng(seed)
        for name, count in classes.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                height, width = (int(side) for side in random.integers(12, 30, 2))
                shape = (height, width) if mode == "L" else (height, width, 3)
                pixels = random.integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"image{number:03d}{suffix}")
        return root

    return make


def idx_bytes(array: np.ndarray) -> bytes:
    """uint8 of any shape as the bytes of an IDX file."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(
    folder: Path, images: np.ndarray, labels: np.ndarray, part: str = "train", compress: bool = True
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
        content = idx_bytes(array.astype(np.uint8))
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            (folder / name).write_bytes(content)


def some_images(count: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def all_pixels(split: object) -> np.ndarray:
    """Every image of a split, uint8 (N,H,W,C)."""
    images = split.images  # type: ignore[attr-defined]
    pixels: np.ndarray = images.batch(np.arange(len(images)))
    return pixels
