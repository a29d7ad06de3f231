"""Loads the data set that a profile names: read, split, brought to one form.

    data = load(settings)
    for images, labels in batches(data.train, 64): ...

Every kind reads its files to `RawData`; from there on all are treated alike, here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError
from stages.data import digits, idx, image_folder, npz
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
from stages.data.raw import RawData, refuse_unusable
from stages.data.registry import plugin_settings
from stages.data.settings import DataSettings
from stages.data.splits import TEST_STREAM, VALIDATION_STREAM, cut
from stages.data.torchvision import sets as torchvision_sets
from stages.data.torchvision.table import SETS

_READERS: dict[str, Callable[[Any], RawData]] = {
    "digits": digits.read,
    "idx": idx.read,
    "npz": npz.read,
    "image_folder": image_folder.read,
    **dict.fromkeys(SETS, torchvision_sets.read),
}

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
    parts = _divided(settings, raw)
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
    mean, std = _constants(settings, raw, parts["train"][1], splits["train"].images)
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
        notes=(*raw.notes, *_remarks(raw, parts)),
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
            hint=f"give {form.channels} values each, or set data.channels",
        )
    return form


Parts = dict[str, tuple[str, np.ndarray]]
"""For train, validation and test: the raw split it comes from, and its rows there, sorted."""


def _divided(settings: DataSettings, raw: RawData) -> Parts:
    """Cuts what the set does not bring: first the test split, then validation from what is left."""
    labels = np.asarray(raw.train.labels, np.int64)
    train = np.arange(len(labels))
    parts: Parts = {}
    cuts = [("test", settings.test, TEST_STREAM), ("validation", settings.validation, VALIDATION_STREAM)]
    owned = raw.parts()
    to_cut = [name for name, _, _ in cuts if name not in owned]
    for name, fraction, stream in cuts:
        if name in owned:
            parts[name] = (name, np.arange(len(owned[name])))
            continue
        to_cut.remove(name)
        rest, part = cut(labels[train], fraction, settings.split_seed, stream, leave=1 + len(to_cut))
        parts[name] = ("train", train[part])
        train = train[rest]
    return {"train": ("train", train), **parts}


def _held(images: Any, form: Form, workers: int, keep: bool) -> Images:
    if isinstance(images, np.ndarray):
        array = images[..., np.newaxis] if images.ndim == 3 else images
        if array.shape[1:] == form.shape:
            return ArrayImages(array)
    return DecodedImages(images, form, workers=workers, keep=keep)


def _selected(images: Images, rows: np.ndarray) -> Images:
    return images if len(rows) == len(images) else SelectedImages(images, rows)


def _constants(
    settings: DataSettings, raw: RawData, rows: np.ndarray, images: Images
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation: the profile's, else those of the training part at image_size.

    Of a set of files at most 20,000 training images are looked at, evenly spread, whether or not they fit
    into memory: so `memory_limit_gb` cannot change what a network is given.
    """
    if settings.mean is not None and settings.std is not None:
        return tuple(settings.mean), tuple(settings.std)
    where = settings.name
    if isinstance(raw.train.images, np.ndarray):
        return mean_and_std(images, where)
    looked_at = evenly_spread(len(images), LOOKED_AT)
    sources = [raw.train.images[i] for i in rows[looked_at]]
    identity = _identity(sources, images.shape, settings.resize)
    known = _computed.get(identity)
    if known is None:
        known = mean_and_std(_selected(images, looked_at), where)
        if identity:
            _computed[identity] = known
    return known


_computed: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {}
"""Mean and deviation of files as they were, so that the stages of one run decode them once."""


def _identity(sources: Sequence[Source], shape: tuple[int, int, int], resize: str) -> str:
    """Of files, by path, size and time of change; "" if they are not files."""
    told = hashlib.sha256(repr((shape, resize)).encode())
    for source in sources:
        if not isinstance(source, Path):
            return ""
        try:
            state = source.stat()
        except OSError:  # it is named when it is decoded
            return ""
        line = f"{source.absolute()}\0{state.st_size}\0{state.st_mtime_ns}\0{state.st_ino}\n"
        told.update(line.encode("utf-8", "surrogateescape"))
    return told.hexdigest()


def _remarks(raw: RawData, parts: Parts) -> tuple[str, ...]:
    """What may lessen the worth of the figures: repeated images, classes that are never tested."""
    remarks = []
    sources = {name: [raw.parts()[source].images[i] for i in rows] for name, (source, rows) in parts.items()}
    twice = repeated([*sources["train"], *sources["validation"]], sources["test"])
    if twice:
        remarks.append(
            f"{twice} of {len(sources['test'])} test images occur among the training images as well, "
            "byte for byte: the test accuracy flatters"
        )
    for name in ("test", "validation"):
        source, rows = parts[name]
        labels = raw.parts()[source].labels[rows]
        absent = [raw.classes[label] for label in sorted(set(range(len(raw.classes))) - set(labels.tolist()))]
        if absent:
            shown = ", ".join(absent[:10]) + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
            remarks.append(f"the {name} split has no image of {len(absent)} classes: {shown}")
    return tuple(remarks)
