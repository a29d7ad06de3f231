"""Decodes images to uint8 squares, and holds them: in one array, or on disk until asked for."""

from __future__ import annotations

import os
import shlex
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from PIL import Image, ImageOps

from pipeline.errors import DataError
from stages.data.preprocessing import resized

Source = Path | np.ndarray
"""An image file, or a uint8 array (H,W), (H,W,1) or (H,W,3)."""

LISTED = 10
"""How many bad files an error names."""

_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_WIDE_MODES = {"I;16", "I;16B", "I;16L", "I;16N"}


@dataclass(frozen=True)
class Form:
    """What every image is brought to: side in pixels, 1 or 3 channels, Pillow's resize filter."""

    image_size: int
    channels: int
    resize: str

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.image_size, self.image_size, self.channels)


class Images(Protocol):
    """Images of one shape, by index."""

    def __len__(self) -> int: ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """int64 (n,) -> uint8 (n,H,W,C), C-contiguous, the caller's own.

        Raises DataError if a file cannot be read.
        """


class UnreadableImage(ValueError):  # noqa: N818 - a finding that is collected, not an end
    """One image that cannot be decoded; the text tells why."""


def decode(source: Source, form: Form) -> np.ndarray:
    """One image as uint8 (H,W,C): turned upright, grey or RGB, resized, cropped to the centre.

    Transparent images are laid on white; 16-bit grey is brought to 8 bits (v / 257, rounded).
    Raises UnreadableImage.
    """
    if isinstance(source, np.ndarray):
        image = Image.fromarray(source[..., 0] if source.ndim == 3 and source.shape[2] == 1 else source)
        return _formed(image, form)
    try:
        with Image.open(source) as image:
            image.load()
            return _formed(ImageOps.exif_transpose(image), form, image.format)
    except UnreadableImage:
        raise
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        raise UnreadableImage(_reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file (a broken link?)"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or of a format that Pillow does not know"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _formed(image: Image.Image, form: Form, file_format: str | None = None) -> np.ndarray:
    image = _coloured(image, "L" if form.channels == 1 else "RGB", file_format)
    size = form.image_size
    width, height = resized(*image.size, size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling[form.resize.upper()])
    if width != height:
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).reshape(form.shape)


def _coloured(image: Image.Image, mode: str, file_format: str | None) -> Image.Image:
    """Any of Pillow's modes -> `L` or `RGB`."""
    sixteen_bits = image.mode == "I" and file_format in ("PNG", "PPM")  # as older Pillows open it
    if sixteen_bits or image.mode in _WIDE_MODES:
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    elif image.mode in ("I", "F"):
        raise UnreadableImage("32-bit pixels have no fixed scale: convert the file to 8 or 16 bits")
    if image.mode.endswith(("A", "a")) or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(wide: np.ndarray) -> np.ndarray:
    values = np.clip(wide, 0, 65535).astype(np.uint32)
    return ((values + 128) // 257).astype(np.uint8)


def grey(path: Path) -> bool:
    """Whether a file's header says grey. An unreadable one does: decoding will name it."""
    try:
        with Image.open(path) as image:
            return image.mode in _GREY_MODES
    except Exception:  # as in `decode`
        return True


@dataclass(frozen=True)
class ArrayImages:
    """Images that lie in memory as one uint8 array (N,H,W,C)."""

    in_memory: ClassVar[bool] = True
    array: np.ndarray

    def __len__(self) -> int:
        return len(self.array)

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width, channels = self.array.shape[1:]
        return (height, width, channels)

    def batch(self, indices: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.array[np.asarray(indices, dtype=np.int64)])


class DecodedImages:
    """Images that are decoded when they are first asked for, by a pool of threads.

    keep: remember what was decoded, in one uint8 array (N,H,W,C); otherwise every batch is decoded anew.
    Either way the pixels are the same.
    """

    in_memory: ClassVar[bool] = False

    def __init__(
        self, sources: Sequence[Source] | np.ndarray, form: Form, *, workers: int, keep: bool
    ) -> None:
        self._sources = sources
        self._form = form
        self._workers = workers
        self._kept = np.empty((len(sources), *form.shape), np.uint8) if keep else None
        self._known = np.zeros(len(sources), bool)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._form.shape

    def batch(self, indices: np.ndarray) -> np.ndarray:
        indices = np.asarray(indices, dtype=np.int64)
        if self._kept is None:
            return decode_all([self._sources[i] for i in indices], self._form, self._workers)
        with self._lock:  # two readers of one batch would decode it twice
            lacking = np.unique(indices[~self._known[indices]])
            if len(lacking):
                images = [self._sources[i] for i in lacking]
                self._kept[lacking] = decode_all(images, self._form, self._workers)
                self._known[lacking] = True
        return np.ascontiguousarray(self._kept[indices])


@dataclass(frozen=True)
class SelectedImages:
    """Some of other images, in the order of `rows` (int64); the pixels are not copied."""

    images: Images
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def in_memory(self) -> bool:
        return bool(getattr(self.images, "in_memory", False))

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.images.shape

    def batch(self, indices: np.ndarray) -> np.ndarray:
        return self.images.batch(self.rows[np.asarray(indices, dtype=np.int64)])


def decode_all(sources: Sequence[Source], form: Form, workers: int) -> np.ndarray:
    """uint8 (n,H,W,C). Raises DataError that names up to ten files that cannot be read."""
    out = np.empty((len(sources), *form.shape), np.uint8)
    refuse_bad_files(_each(sources, lambda i, source: np.copyto(out[i], decode(source, form)), workers))
    return out


def unreadable_files(sources: Sequence[Source], form: Form, workers: int) -> list[tuple[Source, str]]:
    """Really decodes the images and keeps none; returns those that fail, in order, each with why."""
    return _each(sources, lambda _, source: decode(source, form), workers)


def unreadable_headers(paths: Sequence[Path], workers: int) -> list[tuple[Source, str]]:
    """Reads the headers alone; returns the files that fail, in order, each with why."""

    def open_header(_: int, source: Source) -> None:
        try:
            with Image.open(source):  # type: ignore[arg-type]
                pass
        except Exception as error:  # as in `decode`
            raise UnreadableImage(_reason(error)) from error

    return _each(paths, open_header, workers)


def refuse_bad_files(bad: Sequence[tuple[Source, str]]) -> None:
    """Raises DataError if there are any, naming the first ten and the command that removes them."""
    if not bad:
        return
    named = [(source, why) for source, why in bad if isinstance(source, Path)][:LISTED]
    lines = [f"\n  {path}: {why}" for path, why in named]
    if len(bad) == 1 or not named:
        lines = [bad[0][1]]
    more = f"\n  and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
    remove = shlex.join(["rm", *(str(path) for path, _ in named)])
    raise DataError(
        f"{len(bad)} image{'s' if len(bad) != 1 else ''} cannot be read",
        where=str(named[0][0]) if named else "",
        why="".join(lines) + more,
        hint=f"replace them by intact copies, or remove them: {remove}",
    )


def _each(
    sources: Sequence[Source], work: Callable[[int, Source], object], workers: int
) -> list[tuple[Source, str]]:
    """Calls `work(index, source)` for all, on threads; returns those that raised UnreadableImage."""
    Image.init()  # not safe to happen in several threads at once

    def run(indices: range) -> list[tuple[Source, str]]:
        bad: list[tuple[Source, str]] = []
        for i in indices:
            try:
                work(i, sources[i])
            except UnreadableImage as error:
                bad.append((sources[i], str(error)))
        return bad

    # A few pieces a thread even out images of unequal size; small ones would cost more than they save.
    step = max(4, -(-len(sources) // (4 * workers)))
    pieces = [range(start, min(start + step, len(sources))) for start in range(0, len(sources), step)]
    if workers == 1 or len(pieces) < 2:
        return [bad for piece in pieces for bad in run(piece)]
    return [bad for found in _pool(workers).map(run, pieces) for bad in found]


_pools: dict[int, ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()


def _pool(workers: int) -> ThreadPoolExecutor:
    """One pool a size for the whole process: starting threads for each batch would cost more than it."""
    with _pools_lock:
        if workers not in _pools:
            _pools[workers] = ThreadPoolExecutor(workers, thread_name_prefix="kdpipe-decode")
        return _pools[workers]


os.register_at_fork(after_in_child=_pools.clear)  # a forked child has the pools without their threads
