"""IDX files, the format of MNIST: a big-endian header and the bytes, plain or gzip-compressed.

The header is two zero bytes, a type (8: unsigned byte), the number of dimensions, and each
dimension as a 32-bit whole number (yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from pipeline.errors import DataError
from stages.data.places import idx_files
from stages.data.raw import RawData, RawSplit, named_classes
from stages.data.settings import IdxSettings

_UNSIGNED_BYTE = 8


def read(settings: IdxSettings) -> RawData:
    """The set in `settings.root`. Raises DataError for missing, damaged or ill-fitting files."""
    files = idx_files(settings)
    train, test = read_splits(files)
    labels = [train.labels] + ([test.labels] if test else [])
    return RawData(named_classes(settings.classes, files.get("classes"), labels), train, test)


def read_splits(files: dict[str, Path]) -> tuple[RawSplit, RawSplit | None]:
    """Training and test split from the files by role (`stages.data.places.idx_files`)."""
    train = _split(files["train_images"], files["train_labels"])
    test = _split(files["test_images"], files["test_labels"]) if "test_images" in files else None
    return train, test


def _split(images_path: Path, labels_path: Path) -> RawSplit:
    images, labels = read_file(images_path, 3), read_file(labels_path, 1)
    if len(images) != len(labels):
        raise DataError(
            "images and labels do not fit",
            where=str(labels_path),
            why=f"it holds {len(labels)} labels, but {images_path.name} holds {len(images)} images",
            hint="bring both files from the same copy of the set",
        )
    return RawSplit(images, labels.astype(np.int64))


def read_file(path: Path, dimensions: int) -> np.ndarray:
    """One file as a uint8 array with that many dimensions (read-only).

    Raises DataError if the header tells another type or shape, or the length does not fit it.
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
    zero, kind, found = struct.unpack_from(">HBB", content)
    if zero != 0 or kind != _UNSIGNED_BYTE or found != dimensions:
        expected = f"0x{_UNSIGNED_BYTE << 8 | dimensions:08x}"
        raise _damaged(path, f"it starts with 0x{content[:4].hex()}, {expected} is expected")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    if len(content) - header != math.prod(shape):
        size = "x".join(str(side) for side in shape)
        raise _damaged(
            path,
            f"its header tells {size} = {math.prod(shape)} bytes, but {len(content) - header} follow",
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        "an IDX file is damaged, or no IDX file",
        where=str(path),
        why=why,
        hint="fetch this file again, or compare its checksum with the published one: md5sum " + path.name,
    )
