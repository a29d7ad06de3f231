"""Test images that are also training images: they raise the measured accuracy."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pipeline.hashing import hash_file
from stages.data.images import Source

_MAX_FILES = 20_000
"""The search reads at most this many files of equal size; for more, it is skipped."""


def count_repeated(train: Sequence[Source], test: Sequence[Source]) -> int:
    """Count the test images that are byte for byte equal to a training image.

    The bytes are those of the file for image files, and the pixels for arrays.
    """
    if isinstance(test[0], Path) or isinstance(train[0], Path):
        return _repeated_files(
            [s for s in train if isinstance(s, Path)], [s for s in test if isinstance(s, Path)]
        )
    known = {_pixels(image) for image in train if isinstance(image, np.ndarray)}
    return sum(_pixels(image) in known for image in test if isinstance(image, np.ndarray))


def _pixels(image: np.ndarray) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16, salt=repr(image.shape).encode()[:16]).digest()


def _repeated_files(train: Iterable[Path], test: Iterable[Path]) -> int:
    by_size: dict[int, tuple[list[Path], list[Path]]] = defaultdict(lambda: ([], []))
    for side, paths in enumerate((train, test)):
        for path in paths:
            try:
                by_size[path.stat().st_size][side].append(path)
            except OSError:  # decoding reports the file
                continue
    alike = [(left, right) for left, right in by_size.values() if left and right]
    if sum(len(left) + len(right) for left, right in alike) > _MAX_FILES:
        return 0
    count = 0
    for left, right in alike:
        known = {_content(path) for path in left}
        count += sum(_content(path) in known for path in right)
    return count


def _content(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError:  # decoding reports the file
        return str(path)
