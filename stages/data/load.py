"""Loads the data set that a profile names: read, split, brought to one form.

    data = load(settings)
    for images, labels in batches(data.train, 64): ...

Every kind reads its files to `RawData`; from there on all are treated alike, here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError
from stages.data import digits, idx, image_folder, npz, torchvision_sets
from stages.data.channels import LOOKED_AT, evenly_spread, mean_and_std, own_channels
from stages.data.duplicates import repeated
from stages.data.images import (
    ArrayImages,
    DecodedImages,
    Form,
    Images,
    SelectedImages,
    Source,
    refuse_bad_files,
    unreadable_files,
    unreadable_headers,
)
from stages.data.preprocessing import SCALE, Preprocessing
from stages.data.raw import RawData, RawSplit, refuse_unusable
from stages.data.registry import plugin_settings
from stages.data.settings import DataSettings
from stages.data.splits import cut
from stages.data.torchvision_files import SETS

_READERS: dict[str, Callable[[Any], RawData]] = {
    "digits": digits.read,
    "idx": idx.read,
    "npz": npz.read,
    "image_folder": image_folder.read,
    **dict.fromkeys(SETS, torchvision_sets.read),
}

_TEST_STREAM, _VALIDATION_STREAM = 1, 2

CHECKED = 20_000
"""`check` really decodes a set of up to so many files; of larger ones a sample."""

_SAMPLE = 5_000


@dataclass(frozen=True)
class Split:
    """images: N images uint8 (H,W,C). labels: int64 (N,), indices into the classes."""

    images: Images
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSet:
    """A data set, ready to use.

    classes: names by label. preprocessing: what the networks are to do with the pixels.
    train, validation, test: no image is in two of them. notes: what the user should know.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    train: Split
    validation: Split
    test: Split
    notes: tuple[str, ...] = ()


def load(settings: DataSettings) -> DataSet:
    """Reads, splits and forms the set. Equal settings and files give equal sets, bit by bit.

    Files are decoded when their images are first asked for, and kept if the whole set fits into
    `memory_limit_gb`; the limit changes no pixel.

    Raises DataError for a set that is missing, damaged or unfit; a damaged image file shows up
    when it is decoded, if `check` has not been called before.
    """
    raw = _read(settings)
    form = _form(settings, raw)
    raw, parts = _divided(settings, raw)
    count = sum(len(part) for part in raw.parts().values())
    keep = count * int(np.prod(form.shape)) <= settings.memory_limit_gb * 1e9
    held = {name: _held(part.images, form, settings.workers, keep) for name, part in raw.parts().items()}
    splits = {
        name: Split(
            images=_selected(held[source], rows),
            labels=np.asarray(raw.parts()[source].labels, np.int64)[rows],
        )
        for name, (source, rows) in parts.items()
    }
    mean, std, note = _constants(settings, raw, parts["train"][1], splits["train"].images)
    return DataSet(
        classes=raw.classes,
        preprocessing=Preprocessing(
            image_size=form.image_size,
            channels=form.channels,
            resize=form.resize,
            antialias=form.resize != "nearest",
            scale=SCALE,
            mean=mean,
            std=std,
        ),
        **splits,
        notes=(*raw.notes, *note, *_remarks(raw, parts)),
    )


def check(settings: DataSettings) -> None:
    """Finds what is wrong with the set before anything runs.

    Reads every file of an array set and decodes every image of a folder with up to 20,000 of them; of larger
    folders 5,000 images, evenly spread, and the headers of all. A set that is yet to be downloaded passes.

    Raises DataError, for unreadable images with the names of up to ten.
    """
    if settings.name in SETS and torchvision_sets.to_be_downloaded(settings):  # type: ignore[arg-type]
        return
    raw = _read(settings)
    form = _form(settings, raw)
    files = [source for part in raw.parts().values() for source in part.images if isinstance(source, Path)]
    if len(files) > CHECKED:
        refuse_bad_files(unreadable_headers(files, settings.workers))
        files = [files[i] for i in evenly_spread(len(files), _SAMPLE)]
    refuse_bad_files(unreadable_files(files, form, settings.workers))


def _read(settings: DataSettings) -> RawData:
    reader = _READERS.get(settings.name)
    raw = reader(settings) if reader else plugin_settings(settings).load()
    refuse_unusable(raw, getattr(settings, "root", None) or settings.name)
    return raw


def _form(settings: DataSettings, raw: RawData) -> Form:
    form = Form(settings.image_size, settings.channels or own_channels(raw), settings.resize)
    if settings.mean is not None and len(settings.mean) != form.channels:
        raise DataError(
            "mean and std do not fit the images",
            where="data.mean, data.std",
            why=f"they have {len(settings.mean)} values, the images {form.channels} channels",
            mend=f"give {form.channels} values each, or set data.channels",
        )
    return form


Parts = dict[str, tuple[str, np.ndarray]]
"""For train, validation and test: the raw split it comes from, and its rows there."""


def _divided(settings: DataSettings, raw: RawData) -> tuple[RawData, Parts]:
    """Cuts what the set does not bring: first the test split, then validation from what is left.

    The rows are sorted by their place in the set, which by itself is sorted by name.
    """
    labels = np.asarray(raw.train.labels, np.int64)
    train = np.arange(len(labels))
    parts: Parts = {}
    for name, fraction, stream in (
        ("test", settings.test, _TEST_STREAM),
        ("validation", settings.validation, _VALIDATION_STREAM),
    ):
        own = raw.parts().get(name)
        if own is not None:
            parts[name] = (name, np.arange(len(own)))
        else:
            # A class of three must still have an image for what is cut next.
            rest, part = cut(labels[train], fraction, settings.split_seed, stream)
            parts[name] = ("train", train[part])
            train = train[rest]
    return raw, {"train": ("train", train), **parts}


def _held(images: Any, form: Form, workers: int, keep: bool) -> Images:
    if isinstance(images, np.ndarray):
        array = images[..., np.newaxis] if images.ndim == 3 else images
        if array.shape[1:] == form.shape:
            return ArrayImages(array)
    return DecodedImages(images, form, workers=workers, keep=keep)


def _selected(images: Images, rows: np.ndarray) -> Images:
    return images if len(rows) == len(images) else SelectedImages(images, rows)
