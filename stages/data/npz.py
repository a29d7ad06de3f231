"""Sets as NumPy archives: `train.npz` and `test.npz`, or one file like those of Keras and MedMNIST."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from pipeline.errors import DataError
from stages.data.damaged import reading_errors_as
from stages.data.raw import RawData, RawSplit, named_classes
from stages.data.set_files import npz_files
from stages.data.settings import NpzSettings

ArrayNames = dict[str, tuple[str, str]]
"""For each split, the names of its arrays of images and labels; `train` is always there."""

PLAIN: ArrayNames = {"train": ("images", "labels")}
KERAS: ArrayNames = {
    "train": ("x_train", "y_train"),
    "validation": ("x_val", "y_val"),
    "test": ("x_test", "y_test"),
}
MEDMNIST: ArrayNames = {
    "train": ("train_images", "train_labels"),
    "validation": ("val_images", "val_labels"),
    "test": ("test_images", "test_labels"),
}


def read(settings: NpzSettings) -> RawData:
    """Read the set in `settings.root`.

    Raises:
        DataError: A file is missing or damaged, or does not contain the expected arrays.
    """
    files = npz_files(settings)
    if "test" in files:
        parts = {split: _read_splits(files[split], (PLAIN,))["train"] for split in ("train", "test")}
    else:
        parts = _read_splits(files["train"], (PLAIN, KERAS, MEDMNIST))
    labels = [part.labels for part in parts.values()]
    classes = named_classes(settings.classes, files.get("classes"), labels)
    return RawData(classes, parts["train"], parts.get("test"), parts.get("validation"))


def _read_splits(path: Path, conventions: tuple[ArrayNames, ...]) -> dict[str, RawSplit]:
    """Read the splits of a file by the naming convention with most matches; the first, if none matches."""
    # No pickles: an array of objects could run anything.
    with reading_errors_as(partial(_damaged, path)), np.load(path, allow_pickle=False) as archive:
        names = archive.files
        convention = max(conventions, key=lambda pairs: sum(name in names for name in pairs["train"]))
        pairs = {split: pair for split, pair in convention.items() if split == "train" or {*pair} & {*names}}
        absent = [name for pair in pairs.values() for name in pair if name not in names]
        if absent:
            raise _damaged(path, f"it has no {' and no '.join(absent)}, but {', '.join(names) or 'nothing'}")
        return {
            split: RawSplit(
                archive[images], archive[labels] if convention is PLAIN else _flat(archive[labels])
            )
            for split, (images, labels) in pairs.items()
        }


def _flat(labels: np.ndarray) -> np.ndarray:
    """Reshape (N, 1), the shape in MedMNIST and Keras's CIFAR, to (N,); return other labels unchanged."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        "an npz file is damaged, or does not contain the expected arrays",
        where=str(path),
        why=why,
        hint=(
            "write it with numpy.savez_compressed(FILE, images=IMAGES, labels=LABELS): "
            "uint8 (N,H,W[,3]) and integers (N,); docs/guides/data.md lists the other formats"
        ),
    )
