"""Sets as NumPy archives: `train.npz` and `test.npz`, or one file as Keras and MedMNIST publish theirs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from pipeline.errors import DataError
from stages.data.damaged import reading
from stages.data.places import npz_files
from stages.data.raw import RawData, RawSplit, named_classes
from stages.data.settings import NpzSettings

Form = dict[str, tuple[str, str]]
"""For each split the names of its images and its labels; `train` is always there."""

PLAIN: Form = {"train": ("images", "labels")}
KERAS: Form = {
    "train": ("x_train", "y_train"),
    "validation": ("x_val", "y_val"),
    "test": ("x_test", "y_test"),
}
MEDMNIST: Form = {
    "train": ("train_images", "train_labels"),
    "validation": ("val_images", "val_labels"),
    "test": ("test_images", "test_labels"),
}


def read(settings: NpzSettings) -> RawData:
    """The set in `settings.root`. Raises DataError for missing, damaged or ill-fitting files."""
    files = npz_files(settings)
    if "test" in files:
        parts = {split: _parts(files[split], (PLAIN,))["train"] for split in ("train", "test")}
    else:
        parts = _parts(files["train"], (PLAIN, KERAS, MEDMNIST))
    labels = [part.labels for part in parts.values()]
    classes = named_classes(settings.classes, files.get("classes"), labels)
    return RawData(classes, parts["train"], parts.get("test"), parts.get("validation"))


def _parts(path: Path, forms: tuple[Form, ...]) -> dict[str, RawSplit]:
    """The splits in one file, by that form of which most is there; the first, if none is."""
    # No pickles: an array of objects could run anything.
    with reading(partial(_unfit, path)), np.load(path, allow_pickle=False) as archive:
        names = archive.files
        form = max(forms, key=lambda form: sum(name in names for name in form["train"]))
        wanted = {split: pair for split, pair in form.items() if split == "train" or {*pair} & {*names}}
        absent = [name for pair in wanted.values() for name in pair if name not in names]
        if absent:
            raise _unfit(path, f"it has no {' and no '.join(absent)}, but {', '.join(names) or 'nothing'}")
        return {
            split: RawSplit(archive[images], archive[labels] if form is PLAIN else _flat(archive[labels]))
            for split, (images, labels) in wanted.items()
        }


def _flat(labels: np.ndarray) -> np.ndarray:
    """(N,1), as MedMNIST and Keras's CIFAR have them, -> (N,); others as they are."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _unfit(path: Path, why: str) -> DataError:
    return DataError(
        "an npz file is damaged, or not of the form that is expected",
        where=str(path),
        why=why,
        hint=(
            "write it with numpy.savez_compressed(FILE, images=IMAGES, labels=LABELS): "
            "uint8 (N,H,W[,3]) and whole numbers (N,); docs/guides/data.md tells the other forms"
        ),
    )
