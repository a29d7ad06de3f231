"""The images of a folder of class folders. Imports only the standard library.

There are two layouts: `root/CLASS/*`, and `root/train/CLASS/*` with `root/test`, `root/val`, `root/valid` or
`root/validation` beside it. The second applies where `root/train` contains folders, so a class can
be called `train`. Hidden files, hidden folders and files that are not images are ignored.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from stages.data.missing import LAYOUTS, existing_root, missing

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")

_TRAIN = "train"
_TEST = "test"
_VALIDATION = ("val", "valid", "validation")


@dataclass(frozen=True)
class ClassFolders:
    """Image names by class; classes and names are in code point order.

    Attributes:
        root: The set's folder.
        train: Class -> file names, relative to the class's folder in that split.
        validation: The same for validation, if the set has that split.
        test: The same for testing, if the set has that split.
        folders: The split's folder by `train`, `validation`, `test`; only splits that exist.
        ignored: How many folders inside class folders were ignored.
    """

    root: Path
    train: dict[str, tuple[str, ...]]
    validation: dict[str, tuple[str, ...]] | None = None
    test: dict[str, tuple[str, ...]] | None = None
    folders: dict[str, Path] = field(default_factory=dict)
    ignored: int = 0

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, by label."""
        return tuple(self.train)

    def files(self) -> list[Path]:
        """Return the paths of all images, in the order train, validation, test."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return [
            self.folders[split] / name / file
            for split, classes in parts.items()
            for name, files in (classes or {}).items()
            for file in files
        ]


def class_folders(settings: Any) -> ClassFolders:
    """List a set's images without opening them.

    Raises:
        DataError: The root is missing or empty, there are fewer than two classes, a class has no image, or
            the test or validation split has a class that the training split does not have.
    """
    root = existing_root(settings)
    try:
        folders = _scan(root)
    except OSError as error:
        raise DataError(
            "the image folder cannot be read",
            where=error.filename or str(root),
            why=error.strerror or str(error),
            hint=f"make it readable: chmod -R a+rX {root}",
        ) from error
    _refuse_unusable(settings, folders)
    return folders


def _scan(root: Path) -> ClassFolders:
    top = inner_folders(root)
    if _TRAIN in top and inner_folders(root / _TRAIN):
        folders = {"train": root / _TRAIN}
        held_out = [name for name in _VALIDATION if name in top]
        if len(held_out) > 1:
            raise DataError(
                "the image folder has two validation splits",
                where=str(root),
                why=f"{' and '.join(held_out)} mean the same",
                hint=f"keep one of them; rename the other to {_TEST} if it is the test split",
            )
        if _TEST in top:
            folders["test"] = root / _TEST
        if held_out:
            folders["validation" if _TEST in top else "test"] = root / held_out[0]
    else:
        folders = {"train": root}
    ignored = 0
    splits: dict[str, dict[str, tuple[str, ...]]] = {}
    for split, folder in folders.items():
        splits[split] = {}
        for name in inner_folders(folder):
            files, inner = _images(folder / name)
            splits[split][name] = files
            ignored += inner
    return ClassFolders(
        root=root,
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
        folders=folders,
        ignored=ignored,
    )


def inner_folders(folder: Path) -> list[str]:
    """Return the sorted names of the folders in a folder, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())


def _images(folder: Path) -> tuple[tuple[str, ...], int]:
    files: list[str] = []
    inner = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            # A broken link is not a folder: it counts as an image, and decoding reports it.
            if entry.is_dir():
                inner += 1
            elif entry.name.lower().endswith(SUFFIXES):
                files.append(entry.name)
    return tuple(sorted(files)), inner


def _refuse_unusable(settings: Any, listing: ClassFolders) -> None:
    train_folder = str(listing.folders["train"])
    if not listing.train:
        raise missing(settings, "it contains no class folders", where=train_folder)
    if not any(listing.train.values()):
        why = f"none of its {len(listing.train)} class folders contains an image"
        raise missing(settings, why, where=train_folder)
    empty = [name for name, files in listing.train.items() if not files]
    if empty:
        raise DataError(
            f"{len(empty)} of {len(listing.train)} class folders contain no image",
            where=train_folder,
            why=f"{_few(empty)}: no file ending in {', '.join(SUFFIXES)} directly inside",
            hint=f"put images there or remove the folder; the layout is {LAYOUTS['image_folder']}",
        )
    if len(listing.train) < 2:
        raise DataError(
            "the image folder has only one class",
            where=train_folder,
            why=f"the only class folder is {listing.classes[0]}; a classifier needs at least two classes",
            hint="set data.root to the folder that contains one folder for each class, or add a class",
        )
    for split in ("test", "validation"):
        classes = getattr(listing, split)
        extra = sorted(set(classes or ()) - set(listing.train))
        if extra:
            raise DataError(
                f"the {split} split has classes that the training split does not have",
                where=str(listing.folders[split]),
                why=f"unknown: {_few(extra)}",
                hint="rename these folders to training classes, or remove them",
            )
        if classes is not None and not any(classes.values()):
            raise DataError(
                f"the {split} split contains no image",
                where=str(listing.folders[split]),
                why="no class folder contains an image",
                hint="put images there, or remove the folder: then kdpipe cuts the split from training",
            )


def _few(names: list[str], most: int = 10) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
