"""A data set as it was read: images of any size with their labels, before splits and resizing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import DataError

RawImages = np.ndarray | Sequence[Path] | Sequence[np.ndarray]
"""One uint8 array (N,H,W), (N,H,W,1) or (N,H,W,3); or paths of image files; or N uint8 arrays
(H,W[,C]) of any sizes."""


@dataclass(frozen=True)
class RawSplit:
    """images: N of them. labels: N whole numbers, indices into the classes."""

    images: RawImages
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class RawData:
    """What a kind of data set reads.

    classes: names by label. train: always there. test, validation: the set's own splits; where
    there is none, a part of `train` is cut. notes: what the user should know of this set.
    """

    classes: tuple[str, ...]
    train: RawSplit
    test: RawSplit | None = None
    validation: RawSplit | None = None
    notes: tuple[str, ...] = ()

    def parts(self) -> dict[str, RawSplit]:
        """The splits that are there, by name."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}


def refuse_unusable(raw: RawData, where: str) -> None:
    """Raises DataError unless images and labels fit each other and every split can be made.

    Each class needs a training image, and one more for each split that is yet to be cut.
    """
    for name, part in raw.parts().items():
        _refuse_misfit(part, len(raw.classes), f"{where}, {name} split")
    if len(raw.classes) < 2:
        raise DataError(
            "the data set has one class only",
            where=where,
            why=f"classes: {', '.join(raw.classes) or 'none'}; telling classes apart takes two",
            hint="bring images of at least two classes",
        )
    repeated = sorted({name for name in raw.classes if raw.classes.count(name) > 1})
    if repeated:
        raise DataError(
            "two classes have the same name",
            where=where,
            why=", ".join(repeated[:10]),
            hint="give every class a name of its own (data.classes or classes.txt)",
        )
    uncut = [name for name in ("test", "validation") if name not in raw.parts()]
    needed = 1 + len(uncut)
    counts = np.bincount(raw.train.labels.astype(np.int64), minlength=len(raw.classes))
    few = [f"{raw.classes[label]} ({counts[label]})" for label in np.flatnonzero(counts < needed)]
    if few:
        cut = f", one each for {' and '.join(['training', *uncut])}" if uncut else ""
        raise DataError(
            f"{len(few)} of {len(raw.classes)} classes have fewer than {needed} training images",
            where=where,
            why=f"{', '.join(few[:10])}{' and more' if len(few) > 10 else ''}; {needed} are needed{cut}",
            hint="add images of these classes, or remove the classes",
        )


def _refuse_misfit(part: RawSplit, classes: int, where: str) -> None:
    fault = ""
    labels = np.asarray(part.labels)
    if isinstance(part.images, np.ndarray):
        array = part.images
        if array.dtype != np.uint8:
            fault = f"images are {array.dtype}, uint8 (0..255) is expected"
        elif array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
            fault = f"images have shape {array.shape}, (N,H,W), (N,H,W,1) or (N,H,W,3) is expected"
        elif 0 in array.shape:
            fault = f"images have shape {array.shape}: there are none"
    elif not len(part.images):
        fault = "there are no images"
    if not fault:
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            fault = f"labels are {labels.dtype} of shape {labels.shape}, whole numbers (N,) are expected"
        elif len(labels) != len(part.images):
            fault = f"there are {len(part.images)} images but {len(labels)} labels"
        elif labels.min() < 0 or labels.max() >= classes:
            fault = (
                f"labels run from {labels.min()} to {labels.max()}, but there are {classes} classes "
                f"(0 to {classes - 1})"
            )
    if fault:
        raise DataError(
            "images and labels do not fit",
            where=where,
            why=fault,
            hint="correct the files; docs/guides/data.md tells what each kind of data set holds",
        )


def named_classes(
    given: Sequence[str] | None, file: Path | None, labels: Sequence[np.ndarray]
) -> tuple[str, ...]:
    """Class names: those given in the profile, else the lines of classes.txt, else the label numbers."""
    if given is not None:
        return tuple(given)
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                "the class names cannot be read",
                where=str(file),
                why=str(error),
                hint="write one class name a line, in label order, as UTF-8 text",
            ) from error
        return tuple(line.strip() for line in lines if line.strip())
    numbers = [part for part in labels if part.size and np.issubdtype(part.dtype, np.integer)]
    highest = max((int(part.max()) for part in numbers), default=-1)
    # Labels far beyond any class count are a fault of the file; listing a name for each would only hide it.
    return tuple(str(number) for number in range(min(highest + 1, 1_000_000)))
