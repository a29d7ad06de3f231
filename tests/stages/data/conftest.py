"""Real image files and real set files, made small; a web server that serves them."""

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


def settings(name: str, root: Path | None, **more: Any) -> TorchvisionSettings:
    place = None if root is None else str(root)
    return TorchvisionSettings(name=name, root=place, **{"image_size": 32, **more})


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def paths_of(part: RawSplit) -> list[Path]:
    """Where its images lie: none is decoded before it is asked for."""
    paths = [path for path in part.images if isinstance(path, Path)]
    assert len(paths) == len(part.images)
    return paths


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server of this machine, and the folder it serves."""
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
