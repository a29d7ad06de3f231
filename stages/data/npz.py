"""Sets as NumPy archives: `train.npz` and `test.npz` with `images` and `labels`."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from pipeline.errors import DataError
from stages.data.places import npz_files
from stages.data.raw import RawData, RawSplit, named_classes
from stages.data.settings import NpzSettings


def read(settings: NpzSettings) -> RawData:
    """The set in `settings.root`. Raises DataError for missing, damaged or ill-fitting files."""
    files = npz_files(settings)
    train = _split(files["train"])
    test = _split(files["test"]) if "test" in files else None
    labels = [train.labels] + ([test.labels] if test else [])
    return RawData(named_classes(settings.classes, files.get("classes"), labels), train, test)


def _split(path: Path) -> RawSplit:
    try:
        # No pickles: an array of objects could run anything.
        with np.load(path, allow_pickle=False) as archive:
            absent = [name for name in ("images", "labels") if name not in archive.files]
            if absent:
                raise _unfit(
                    path, f"it has no {' and no '.join(absent)}, but {', '.join(archive.files) or 'nothing'}"
                )
            return RawSplit(archive["images"], archive["labels"])
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        AttributeError,
        TypeError,
    ) as error:
        raise _unfit(path, f"it cannot be read as npz: {error}") from error


def _unfit(path: Path, why: str) -> DataError:
    return DataError(
        "an npz file is damaged, or not of the form that is expected",
        where=str(path),
        why=why,
        mend=(
            "write it with numpy.savez_compressed(FILE, images=IMAGES, labels=LABELS): "
            "uint8 (N,H,W[,3]) and whole numbers (N,)"
        ),
    )
