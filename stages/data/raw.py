"""A data set as its reader returns it: images of any size and labels, before splits and resizing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import DataError

RawImages = np.ndarray | Sequence[Path] | Sequence[np.ndarray]
"""One uint8 array (N, H, W), (N, H, W, 1) or (N, H, W, 3); or N paths of image files; or N uint8 arrays
(H, W[, C]) of any sizes."""


@dataclass(frozen=True)
class RawSplit:
    """A split of a raw data set.

    Attributes:
        images: N images.
        labels: Integers (N,), indices into the classes.
    """

    images: RawImages
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class RawData:
    """The result of a data set's reader.

    Attributes:
        classes: Class names, by label.
        train: The training images.
        test: The set's own test split; None: kdpipe cuts it from `train`.
        validation: The set's own validation split; None: kdpipe cuts it from `train`.
        notes: Facts about the set that the user should know.
    """

    classes: tuple[str, ...]
    train: RawSplit
    test: RawSplit | None = None
    validation: RawSplit | None = None
    notes: tuple[str, ...] = ()

    def parts(self) -> dict[str, RawSplit]:
        """Return the existing splits, by name."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}


def refuse_unusable(raw: RawData, where: str) -> None:
    """Check that images and labels match, and that every split can be cut.

    Each class needs a training image, and one more for each split that kdpipe has to cut.

    Args:
        raw: The set.
        where: Its folder or name, for the error message.

    Raises:
        DataError: The set is unusable.
    """
    for name, part in raw.parts().items():
        _refuse_misfit(part, len(raw.classes), f"{where}, {name} split")
    if len(raw.classes) < 2:
        raise DataError(
            "the data set has fewer than two classes",
            where=where,
            why=f"classes: {', '.join(raw.classes) or 'none'}; a classifier needs at least two classes",
            hint="add images of at least two classes",
        )
    repeated = sorted({name for name in raw.classes if raw.classes.count(name) > 1})
    if repeated:
        raise DataError(
            "two classes have the same name",
            where=where,
            why=", ".join(repeated[:10]),
            hint="give every class a different name (data.classes or classes.txt)",
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
    why = ""
    labels = np.asarray(part.labels)
    if isinstance(part.images, np.ndarray):
        array = part.images
        if array.dtype != np.uint8:
            why = f"images are {array.dtype}; expected uint8 (0..255)"
        elif array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
            why = f"images have shape {array.shape}; expected (N,H,W), (N,H,W,1) or (N,H,W,3)"
        elif 0 in array.shape:
            why = f"images have shape {array.shape}: there are none"
    elif not len(part.images):
        why = "there are no images"
    if not why:
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            why = f"labels are {labels.dtype} of shape {labels.shape}; expected integers (N,)"
        elif len(labels) != len(part.images):
            why = f"there are {len(part.images)} images but {len(labels)} labels"
        elif labels.min() < 0 or labels.max() >= classes:
            why = (
                f"labels run from {labels.min()} to {labels.max()}, but there are {classes} classes "
                f"(0 to {classes - 1})"
            )
    if why:
        raise DataError(
            "images and labels do not match",
            where=where,
            why=why,
            hint="correct the files; docs/guides/data.md lists the contents of each kind of data set",
        )


def named_classes(
    given: Sequence[str] | None, file: Path | None, labels: Sequence[np.ndarray]
) -> tuple[str, ...]:
    """Return the class names by label.

    Args:
        given: The names from the profile, if it has any.
        file: Otherwise, the path of classes.txt, if it exists.
        labels: Otherwise, the labels of all splits, whose numbers become the names.

    Raises:
        DataError: classes.txt cannot be read.
    """
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
                hint="write one class name on each line, in label order, as UTF-8 text",
            ) from error
        return tuple(line.strip() for line in lines if line.strip())
    numbers = [part for part in labels if part.size and np.issubdtype(part.dtype, np.integer)]
    highest = max((int(part.max()) for part in numbers), default=-1)
    # Labels far above any class count are an error in the file; a name for each would only hide it.
    return tuple(str(number) for number in range(min(highest + 1, 1_000_000)))
