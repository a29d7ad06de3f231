"""Images decoded to uint8 squares, held in one array or decoded from disk on use."""

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
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import DataError
from stages.data.preprocessing import resized

Source = Path | np.ndarray
"""An image file, or a uint8 array (H, W), (H, W, 1) or (H, W, 3)."""

_LISTED_FILES = 10
"""At most this many unreadable files appear in an error."""

_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_WIDE_MODES = {"I;16", "I;16B", "I;16L", "I;16N"}


@dataclass(frozen=True)
class ImageFormat:
    """The common format of all images of a set.

    Attributes:
        image_size: Side of the square image, pixels.
        channels: 1 (grey) or 3 (RGB).
        resize: Pillow's name of the resize filter.
    """

    image_size: int
    channels: int
    resize: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return (self.image_size, self.image_size, self.channels)


class Images(Protocol):
    """Images of equal shape, by index."""

    def __len__(self) -> int: ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """Return some of the images.

        Args:
            indices: int64 (n,).

        Returns:
            A new array, uint8 (n, H, W, C), C-contiguous.

        Raises:
            DataError: A file cannot be read.
        """


class UnreadableImage(ValueError):  # noqa: N818 - collected as a result, not only raised
    """An image that cannot be decoded; the text is the reason."""


def decode(source: Source, image_format: ImageFormat) -> np.ndarray:
    """Decode an image: apply its EXIF orientation, convert to grey or RGB, resize, crop the centre.

    The background of transparent images is white. 16-bit grey becomes 8 bits (v / 257, rounded).

    Returns:
        uint8 (H, W, C), of `image_format.shape`.

    Raises:
        UnreadableImage: The image is damaged, or its pixels have no fixed scale.
    """
    if isinstance(source, np.ndarray):
        image = Image.fromarray(source[..., 0] if source.ndim == 3 and source.shape[2] == 1 else source)
        return _to_format(image, image_format)
    try:
        with Image.open(source) as image:
            image.load()
            return _to_format(ImageOps.exif_transpose(image), image_format, image.format)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's decoders raise nearly any exception for damaged files
        raise UnreadableImage(_reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file (a broken link?)"
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or in a format that Pillow does not support"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _to_format(image: Image.Image, image_format: ImageFormat, file_format: str | None = None) -> np.ndarray:
    image = _to_mode(image, "L" if image_format.channels == 1 else "RGB", file_format)
    size = image_format.image_size
    width, height = resized(*image.size, size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling[image_format.resize.upper()])
    if width != height:
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).reshape(image_format.shape)


def _to_mode(image: Image.Image, mode: str, file_format: str | None) -> Image.Image:
    """Convert an image of any of Pillow's modes to `L` or `RGB`."""
    sixteen_bits = image.mode == "I" and file_format in ("PNG", "PPM")  # the mode in older versions of Pillow
    if sixteen_bits or image.mode in _WIDE_MODES:
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    elif image.mode in ("I", "F"):
        raise UnreadableImage("32-bit pixels have no fixed scale: convert the file to 8 or 16 bits")
    if image.mode.endswith(("A", "a")) or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _to_8_bits(wide: np.ndarray) -> np.ndarray:
    values = np.clip(wide, 0, 65535).astype(np.uint32)
    rounded: np.ndarray = ((values + 128) // 257).astype(np.uint8)
    return rounded


def is_grey(path: Path) -> bool:
    """Return whether a file's header declares grey pixels.

    An unreadable file counts as grey: decoding reports it.
    """
    try:
        with Image.open(path) as image:
            return image.mode in _GREY_MODES
    except Exception:  # as in `decode`
        return True


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory as one uint8 array (N, H, W, C)."""

    in_memory: ClassVar[bool] = True
    array: np.ndarray

    def __len__(self) -> int:
        return len(self.array)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        height, width, channels = self.array.shape[1:]
        return (height, width, channels)

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """Return some of the images; see `Images.batch`."""
        return np.ascontiguousarray(self.array[np.asarray(indices, dtype=np.int64)])


class DecodedImages:
    """Images that a pool of threads decodes at their first use.

    The pixels do not depend on `workers` or `cached`.

    Args:
        sources: N image files or arrays.
        image_format: The format of the decoded images.
        workers: Threads that decode.
        cached: Keep decoded images in one uint8 array (N, H, W, C); otherwise decode each batch again.
    """

    in_memory: ClassVar[bool] = False

    def __init__(
        self, sources: Sequence[Source] | np.ndarray, image_format: ImageFormat, *, workers: int, cached: bool
    ) -> None:
        self._sources = sources
        self._image_format = image_format
        self._workers = workers
        self._cache = np.empty((len(sources), *image_format.shape), np.uint8) if cached else None
        self._decoded = np.zeros(len(sources), bool)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self._image_format.shape

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """Return some of the images, decoding those that are not cached; see `Images.batch`."""
        indices = np.asarray(indices, dtype=np.int64)
        if self._cache is None:
            return decode_all([self._sources[i] for i in indices], self._image_format, self._workers)
        with self._lock:  # otherwise two readers of a batch decode it twice
            absent = np.unique(indices[~self._decoded[indices]])
            if len(absent):
                sources = [self._sources[i] for i in absent]
                self._cache[absent] = decode_all(sources, self._image_format, self._workers)
                self._decoded[absent] = True
        return np.ascontiguousarray(self._cache[indices])


@dataclass(frozen=True)
class SelectedImages:
    """A selection of other images, in the order of `rows` (int64); the pixels are not copied."""

    images: Images
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def in_memory(self) -> bool:
        """Whether the other images are in memory."""
        return bool(getattr(self.images, "in_memory", False))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.images.shape

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """Return some of the images; see `Images.batch`."""
        return self.images.batch(self.rows[np.asarray(indices, dtype=np.int64)])


def decode_all(sources: Sequence[Source], image_format: ImageFormat, workers: int) -> np.ndarray:
    """Decode images on threads.

    Returns:
        uint8 (n, H, W, C).

    Raises:
        DataError: Images cannot be read; it lists up to ten of the files.
    """
    decoded = np.empty((len(sources), *image_format.shape), np.uint8)
    refuse_unreadable(
        _for_each(sources, lambda i, source: np.copyto(decoded[i], decode(source, image_format)), workers)
    )
    return decoded


def unreadable_files(
    sources: Sequence[Source], image_format: ImageFormat, workers: int
) -> list[tuple[Source, str]]:
    """Decode images without keeping them; return those that fail, in order, each with the reason."""
    return _for_each(sources, lambda _, source: decode(source, image_format), workers)


def unreadable_headers(paths: Sequence[Path], workers: int) -> list[tuple[Source, str]]:
    """Read only the headers; return the files that fail, in order, each with the reason."""

    def open_header(_: int, source: Source) -> None:
        try:
            with Image.open(source):  # type: ignore[arg-type]
                pass
        except Exception as error:  # as in `decode`
            raise UnreadableImage(_reason(error)) from error

    return _for_each(paths, open_header, workers)


def refuse_unreadable(unreadable: Sequence[tuple[Source, str]]) -> None:
    """Raise an error for images that cannot be read.

    Args:
        unreadable: The images, each with the reason.

    Raises:
        DataError: There are any; it lists the first ten files and the command that removes them.
    """
    if not unreadable:
        return
    listed = [(source, why) for source, why in unreadable if isinstance(source, Path)][:_LISTED_FILES]
    lines = [f"\n  {path}: {why}" for path, why in listed]
    if len(unreadable) == 1 or not listed:
        lines = [unreadable[0][1]]
    more = f"\n  and {len(unreadable) - _LISTED_FILES} more" if len(unreadable) > _LISTED_FILES else ""
    remove = shlex.join(["rm", *(str(path) for path, _ in listed)])
    raise DataError(
        f"{len(unreadable)} image{'s' if len(unreadable) != 1 else ''} cannot be read",
        where=str(listed[0][0]) if listed else "",
        why="".join(lines) + more,
        hint=f"replace them with intact copies, or remove them: {remove}",
    )


def _for_each(
    sources: Sequence[Source], work: Callable[[int, Source], object], workers: int
) -> list[tuple[Source, str]]:
    """Call `work(index, source)` for all sources on threads; return those that raised UnreadableImage."""
    Image.init()  # not safe in several threads at once

    def run(indices: range) -> list[tuple[Source, str]]:
        failures: list[tuple[Source, str]] = []
        for i in indices:
            try:
                work(i, sources[i])
            except UnreadableImage as error:
                failures.append((sources[i], str(error)))
        return failures

    # A few chunks for each thread balance images of unequal size; smaller chunks cost more than they save.
    step = max(4, -(-len(sources) // (4 * workers)))
    chunks = [range(start, min(start + step, len(sources))) for start in range(0, len(sources), step)]
    if workers == 1 or len(chunks) < 2:
        return [failure for chunk in chunks for failure in run(chunk)]
    return [failure for failures in _pool(workers).map(run, chunks) for failure in failures]


_pools: dict[int, ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()


def _pool(workers: int) -> ThreadPoolExecutor:
    """Return the process's pool of that size: starting threads for each batch costs more than decoding it."""
    with _pools_lock:
        if workers not in _pools:
            _pools[workers] = ThreadPoolExecutor(workers, thread_name_prefix="kdpipe-decode")
        return _pools[workers]


os.register_at_fork(after_in_child=_pools.clear)  # a forked child inherits the pools without their threads
