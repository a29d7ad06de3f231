"""scikit-learn's digits: 1,797 scans of 8x8 pixels with values 0..16, by 43 writers."""

from __future__ import annotations

import gzip
import zlib

import numpy as np

from pipeline.errors import DataError
from stages.data.raw import RawData, RawSplit
from stages.data.set_files import digits_file
from stages.data.settings import DigitsSettings


def read(_settings: DigitsSettings) -> RawData:
    """Read scikit-learn's own file without importing scikit-learn; 0..16 becomes 0..255, rounded.

    Raises:
        DataError: The file is missing or damaged.
    """
    path = digits_file()
    try:
        with gzip.open(path, "rt", encoding="ascii") as stream:
            rows = np.loadtxt(stream, delimiter=",")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            "scikit-learn's digits cannot be read",
            where=str(path),
            why=str(error),
            hint="python -m pip install --force-reinstall scikit-learn",
        ) from error
    images = np.rint(rows[:, :64] * 255.0 / 16.0).astype(np.uint8).reshape(-1, 8, 8)
    return RawData(
        classes=tuple(str(digit) for digit in range(10)),
        train=RawSplit(images, rows[:, 64].astype(np.int64)),
    )
