"""Sets as one folder of image files a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stages.data.class_folders import class_folders
from stages.data.raw import RawData, RawSplit
from stages.data.settings import ImageFolderSettings


def read(settings: ImageFolderSettings) -> RawData:
    """Paths and labels of the set in `settings.root`; no image is opened. Raises DataError."""
    found = class_folders(settings)
    number = {name: label for label, name in enumerate(found.classes)}

    def part(split: str, classes: dict[str, tuple[str, ...]] | None) -> RawSplit | None:
        if classes is None:
            return None
        paths: list[Path] = []
        labels: list[int] = []
        for name, files in classes.items():
            paths += [found.folders[split] / name / file for file in files]
            labels += [number[name]] * len(files)
        return RawSplit(paths, np.asarray(labels, np.int64))

    notes = []
    if found.ignored:
        notes.append(f"{found.ignored} folders inside class folders were passed over: {found.root}")
    train = part("train", found.train)
    assert train is not None
    return RawData(
        found.classes, train, part("test", found.test), part("validation", found.validation), tuple(notes)
    )
