"""Small real image files and set files; a web server for them."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from PIL import Image

from stages.data.raw import RawSplit
from stages.data.settings import TorchvisionSettings


class MakeFolder(Protocol):
    """Write random images into class folders."""

    def __call__(
        self, root: Path, classes: dict[str, int], *, seed: int = 0, suffix: str = ".png", mode: str = "RGB"
    ) -> Path: ...


@pytest.fixture
def make_folder() -> MakeFolder:
    """Return a function that writes random images into class folders."""

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
    """Return a uint8 array of any shape as the bytes of an IDX file."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(
    folder: Path, images: np.ndarray, labels: np.ndarray, part: str = "train", compress: bool = True
) -> None:
    """Write the two IDX files of a split."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
        content = idx_bytes(array.astype(np.uint8))
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            (folder / name).write_bytes(content)


def some_images(count: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return random images, uint8 (count, *shape)."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def all_pixels(split: object) -> np.ndarray:
    """Return all images of a split, uint8 (N, H, W, C)."""
    images = split.images  # type: ignore[attr-defined]
    pixels: np.ndarray = images.batch(np.arange(len(images)))
    return pixels


def settings(name: str, root: Path | None, **more: Any) -> TorchvisionSettings:
    """Return the settings of a torchvision set, with images of 32 pixels by default."""
    folder = None if root is None else str(root)
    return TorchvisionSettings(name=name, root=folder, **{"image_size": 32, **more})


def digest(path: Path) -> str:
    """Return a file's SHA-256, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def md5(path: Path) -> str:
    """Return a file's MD5, hexadecimal."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def paths_of(part: RawSplit) -> list[Path]:
    """Return the paths of a split's images, and check that no image is decoded yet."""
    paths = [path for path in part.images if isinstance(path, Path)]
    assert len(paths) == len(part.images)
    return paths


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Start a web server on this machine; return its address and its folder."""
    served = tmp_path / "served"
    served.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(served))

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/", served
        running.shutdown()
