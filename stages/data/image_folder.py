"""Sets with one folder of image files for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stages.data.class_folders import class_folders
from stages.data.raw import RawData, RawSplit
from stages.data.settings import ImageFolderSettings


def read(settings: ImageFolderSettings) -> RawData:
    """List the paths and labels of the set in `settings.root` without opening an image.

    Raises:
        DataError: The folder is missing or its layout is invalid; see `class_folders`.
    """
    listing = class_folders(settings)
    number = {name: label for label, name in enumerate(listing.classes)}

    def part(split: str, classes: dict[str, tuple[str, ...]] | None) -> RawSplit | None:
        if classes is None:
            return None
        paths: list[Path] = []
        labels: list[int] = []
        for name, files in classes.items():
            paths += [listing.folders[split] / name / file for file in files]
            labels += [number[name]] * len(files)
        return RawSplit(paths, np.asarray(labels, np.int64))

    notes = []
    if listing.ignored:
        notes.append(f"{listing.ignored} folders inside class folders were ignored: {listing.root}")
    train = part("train", listing.train)
    assert train is not None
    return RawData(
        listing.classes,
        train,
        part("test", listing.test),
        part("validation", listing.validation),
        tuple(notes),
    )
