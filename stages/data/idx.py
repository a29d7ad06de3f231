"""IDX files, the format of MNIST: a big-endian header and the bytes, plain or gzip-compressed.

The header is two zero bytes, a type (8: unsigned byte), the number of dimensions, and each
dimension as a 32-bit integer (yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from pipeline.errors import DataError
from stages.data.raw import RawData, RawSplit, named_classes
from stages.data.set_files import idx_files
from stages.data.settings import IdxSettings

_UNSIGNED_BYTE = 8


def read(settings: IdxSettings) -> RawData:
    """Read the set in `settings.root`.

    Raises:
        DataError: A file is missing or damaged, or images and labels do not match.
    """
    files = idx_files(settings)
    train, test = read_splits(files)
    labels = [train.labels] + ([test.labels] if test else [])
    return RawData(named_classes(settings.classes, files.get("classes"), labels), train, test)


def read_splits(files: dict[str, Path]) -> tuple[RawSplit, RawSplit | None]:
    """Read the training and the test split.

    Args:
        files: The files by role, from `stages.data.set_files.idx_files`.

    Returns:
        The training split; the test split, or None if `files` has none.

    Raises:
        DataError: A file is damaged, or images and labels do not match.
    """
    train = _split(files["train_images"], files["train_labels"])
    test = _split(files["test_images"], files["test_labels"]) if "test_images" in files else None
    return train, test


def _split(images_path: Path, labels_path: Path) -> RawSplit:
    images, labels = read_file(images_path, 3), read_file(labels_path, 1)
    if len(images) != len(labels):
        raise DataError(
            "images and labels do not match",
            where=str(labels_path),
            why=f"it has {len(labels)} labels, but {images_path.name} has {len(images)} images",
            hint="use both files from the same copy of the set",
        )
    return RawSplit(images, labels.astype(np.int64))


def read_file(path: Path, dimensions: int) -> np.ndarray:
    """Read a file.

    Args:
        path: The file, plain or `.gz`.
        dimensions: The number of dimensions that its header must have.

    Returns:
        The values, uint8, read-only.

    Raises:
        DataError: The header has another type or number of dimensions, or the length contradicts it.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        cut_short = isinstance(error, EOFError)
        raise _damaged(
            path, "the compressed file is cut short" if cut_short else f"it cannot be read: {error}"
        ) from error
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise _damaged(path, f"{len(content)} bytes are too few for a header of {header}")
    zero, kind, file_dimensions = struct.unpack_from(">HBB", content)
    if zero != 0 or kind != _UNSIGNED_BYTE or file_dimensions != dimensions:
        expected = f"0x{_UNSIGNED_BYTE << 8 | dimensions:08x}"
        raise _damaged(path, f"it starts with 0x{content[:4].hex()}; expected {expected}")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    if len(content) - header != math.prod(shape):
        size = "x".join(str(side) for side in shape)
        raise _damaged(
            path,
            f"its header declares {size} = {math.prod(shape)} bytes, but {len(content) - header} follow",
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        "a file is damaged, or is not an IDX file",
        where=str(path),
        why=why,
        hint="fetch this file again, or compare its checksum with the published one: md5sum " + path.name,
    )
