"""Loading of a profile's data set: read it, split it, convert its images to one format.

Each kind of set has a reader that returns `RawData`. From there this module treats all kinds alike.

Example:
    data = load(settings)
    for images, labels in batches(data.train, 64): ...
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
from stages.data.channels import SAMPLE_SIZE, evenly_spread, mean_and_std, native_channels
from stages.data.duplicates import count_repeated
from stages.data.images import (
    ArrayImages,
    DecodedImages,
    ImageFormat,
    Images,
    SelectedImages,
    Source,
    refuse_unreadable,
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

FULL_CHECK_LIMIT = 20_000
"""`check` decodes all images of a set of up to this many files, and a sample of larger sets."""

_CHECK_SAMPLE_SIZE = 5_000
"""How many images of a larger set `check` decodes."""


@dataclass(frozen=True)
class Split:
    """A part of a data set.

    Attributes:
        images: N images, uint8 (H, W, C).
        labels: int64 (N,), indices into the classes.
    """

    images: Images
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSet:
    """A data set, ready to use. No image is in two splits.

    Attributes:
        classes: Class names, by label.
        preprocessing: What the networks have to do with the pixels.
        train: The training split.
        validation: The validation split.
        test: The test split.
        notes: Facts about the set that the user should know.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    train: Split
    validation: Split
    test: Split
    notes: tuple[str, ...] = ()


def load(settings: DataSettings) -> DataSet:
    """Read and split a set, and convert its images to one format.

    Equal settings and files give bit-identical sets. Files are decoded at their first use, and kept in
    memory if the whole set fits into `memory_limit_gb`; the limit does not change the pixels.

    Raises:
        DataError: The set is missing, damaged or unusable. A damaged image file raises it when the image is
            decoded, unless `check` was called before.
    """
    raw = _read(settings)
    image_format = _image_format(settings, raw)
    split_rows = _split_rows(settings, raw)
    count = sum(len(part) for part in raw.parts().values())
    cached = count * int(np.prod(image_format.shape)) <= settings.memory_limit_gb * 1e9
    images = {
        name: _as_images(part.images, image_format, settings.workers, cached)
        for name, part in raw.parts().items()
    }
    splits = {
        name: Split(
            images=_select(images[source], rows),
            labels=np.asarray(raw.parts()[source].labels, np.int64)[rows],
        )
        for name, (source, rows) in split_rows.items()
    }
    mean, std = _mean_and_std(settings, raw, split_rows["train"][1], splits["train"].images)
    return DataSet(
        classes=raw.classes,
        preprocessing=Preprocessing(
            image_size=image_format.image_size,
            channels=image_format.channels,
            resize=image_format.resize,
            antialias=image_format.resize != "nearest",
            scale=SCALE,
            mean=mean,
            std=std,
        ),
        **splits,
        notes=(*raw.notes, *_notes(raw, split_rows)),
    )


def check(settings: DataSettings) -> None:
    """Find faults of a set before anything runs.

    Of an array set, read every file. Of a folder with up to 20,000 images, decode all; of larger folders,
    decode 5,000 images, evenly spread, and read all headers. A set that is not downloaded yet passes.

    Raises:
        DataError: The set is missing, damaged or unusable; for unreadable images it lists up to ten.
    """
    if settings.name in SETS and torchvision_sets.needs_download(settings):  # type: ignore[arg-type]
        return
    raw = _read(settings)
    image_format = _image_format(settings, raw)
    files = [source for part in raw.parts().values() for source in part.images if isinstance(source, Path)]
    if len(files) > FULL_CHECK_LIMIT:
        refuse_unreadable(unreadable_headers(files, settings.workers))
        files = [files[i] for i in evenly_spread(len(files), _CHECK_SAMPLE_SIZE)]
    refuse_unreadable(unreadable_files(files, image_format, settings.workers))


def _read(settings: DataSettings) -> RawData:
    reader = _READERS.get(settings.name)
    raw = reader(settings) if reader else plugin_settings(settings).load()
    refuse_unusable(raw, getattr(settings, "root", None) or settings.name)
    return raw


def _image_format(settings: DataSettings, raw: RawData) -> ImageFormat:
    channels = settings.channels or native_channels(raw)
    if settings.mean is not None and len(settings.mean) != channels:
        raise DataError(
            "mean and std do not match the images",
            where="data.mean, data.std",
            why=f"they have {len(settings.mean)} values, the images {channels} channels",
            hint=f"set {channels} values each, or set data.channels",
        )
    return ImageFormat(settings.image_size, channels, settings.resize)


SplitRows = dict[str, tuple[str, np.ndarray]]
"""For train, validation and test: the raw split that contains its images, and its rows there, sorted."""


def _split_rows(settings: DataSettings, raw: RawData) -> SplitRows:
    """Cut the splits that the set does not have: first test, then validation from the remaining images."""
    labels = np.asarray(raw.train.labels, np.int64)
    train = np.arange(len(labels))
    parts: SplitRows = {}
    cuts = [("test", settings.test, TEST_STREAM), ("validation", settings.validation, VALIDATION_STREAM)]
    raw_splits = raw.parts()
    to_cut = [name for name, _, _ in cuts if name not in raw_splits]
    for name, fraction, stream in cuts:
        if name in raw_splits:
            parts[name] = (name, np.arange(len(raw_splits[name])))
            continue
        to_cut.remove(name)
        rest, part = cut(labels[train], fraction, settings.split_seed, stream, leave=1 + len(to_cut))
        parts[name] = ("train", train[part])
        train = train[rest]
    return {"train": ("train", train), **parts}


def _as_images(images: Any, image_format: ImageFormat, workers: int, cached: bool) -> Images:
    if isinstance(images, np.ndarray):
        array = images[..., np.newaxis] if images.ndim == 3 else images
        if array.shape[1:] == image_format.shape:
            return ArrayImages(array)
    return DecodedImages(images, image_format, workers=workers, cached=cached)


def _select(images: Images, rows: np.ndarray) -> Images:
    return images if len(rows) == len(images) else SelectedImages(images, rows)


def _mean_and_std(
    settings: DataSettings, raw: RawData, rows: np.ndarray, images: Images
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the profile's mean and standard deviation, else those of the training split at image_size.

    For a set of files, at most 20,000 training images count, evenly spread, even if all fit into memory:
    so `memory_limit_gb` cannot change the input of a network.
    """
    if settings.mean is not None and settings.std is not None:
        return tuple(settings.mean), tuple(settings.std)
    where = settings.name
    if isinstance(raw.train.images, np.ndarray):
        return mean_and_std(images, where)
    sample = evenly_spread(len(images), SAMPLE_SIZE)
    sources = [raw.train.images[i] for i in rows[sample]]
    identity = _files_identity(sources, images.shape, settings.resize)
    statistics = _statistics_cache.get(identity)
    if statistics is None:
        statistics = mean_and_std(_select(images, sample), where)
        if identity:
            _statistics_cache[identity] = statistics
    return statistics


_statistics_cache: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {}
"""Mean and standard deviation by the files' identity, so that the stages of a run decode the files once."""


def _files_identity(sources: Sequence[Source], shape: tuple[int, int, int], resize: str) -> str:
    """Return a digest of the files' paths, sizes and times of change; "" if they are not files."""
    digest = hashlib.sha256(repr((shape, resize)).encode())
    for source in sources:
        if not isinstance(source, Path):
            return ""
        try:
            state = source.stat()
        except OSError:  # decoding reports the file
            return ""
        line = f"{source.absolute()}\0{state.st_size}\0{state.st_mtime_ns}\0{state.st_ino}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _notes(raw: RawData, split_rows: SplitRows) -> tuple[str, ...]:
    """List what makes the measured accuracy less reliable: repeated images, classes without test images."""
    notes = []
    sources = {
        name: [raw.parts()[source].images[i] for i in rows] for name, (source, rows) in split_rows.items()
    }
    repeated = count_repeated([*sources["train"], *sources["validation"]], sources["test"])
    if repeated:
        notes.append(
            f"{repeated} of {len(sources['test'])} test images are also training images, byte for byte: "
            "the test accuracy is too high"
        )
    for name in ("test", "validation"):
        source, rows = split_rows[name]
        labels = raw.parts()[source].labels[rows]
        absent = [raw.classes[label] for label in sorted(set(range(len(raw.classes))) - set(labels.tolist()))]
        if absent:
            listed = ", ".join(absent[:10]) + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
            notes.append(f"the {name} split has no image of {len(absent)} classes: {listed}")
    return tuple(notes)
