"""The calibration set: a class-balanced draw from the training images, with an audit of its content."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stages.data.channels import evenly_spread
from stages.onnx_files.sessions import RUN_BATCH, Batches

COMPARED_IMAGES = 20_000
"""Largest number of validation images that are compared with the calibration images."""

_STREAM = 3
"""Separates this draw's random numbers from other draws with the same seed."""

_MEAN_LIMIT = 1.0
_STD_LIMITS = (1 / 3, 3.0)
"""Limits of the normalised pixels' mean and deviation; beyond them the preprocessing is doubtful."""


def draw(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw images, equally many of each class as far as the class has images.

    Args:
        labels: int64 (N,).
        count: Number of images.
        seed: Equal seeds give equal draws.

    Returns:
        int64 indices in the order of use: one image of each class in turn, so any prefix is balanced too.
    """
    return _in_turns(_shuffled(labels, seed), count)


def divide(labels: np.ndarray, images: int, holdout: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a calibration set and a disjoint hold-out set, each like `draw`.

    Where a class has too few images for both, they share them in proportion, so a rare class is held out too.
    The only image of a class is calibrated with.

    Args:
        labels: int64 (N,).
        images: Number of images to calibrate with.
        holdout: Number of images to compare calibrations on.
        seed: Equal seeds give equal draws.

    Returns:
        int64 indices of the calibration set and of the hold-out set.
    """
    share = images / (images + holdout)
    members = _shuffled(labels, seed)
    cuts = {label: math.ceil(share * len(own)) for label, own in members.items()}
    first = {label: own[: cuts[label]] for label, own in members.items()}
    rest = {label: own[cuts[label] :] for label, own in members.items()}
    return _in_turns(first, images), _in_turns(rest, holdout)


def _shuffled(labels: np.ndarray, seed: int) -> dict[int, np.ndarray]:
    """Return each class's images in random order, independent of the other classes."""
    shuffled = {}
    for label in np.unique(labels):
        random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, _STREAM, int(label)])))
        shuffled[int(label)] = random.permutation(np.flatnonzero(labels == label))
    return shuffled


def _in_turns(members: Mapping[int, np.ndarray], count: int) -> np.ndarray:
    order = [
        (turn, label, int(index)) for label, own in members.items() for turn, index in enumerate(own[:count])
    ]
    return np.array([index for _, _, index in sorted(order)[:count]], dtype=np.int64)


def audit(
    images: Batches, labels: np.ndarray, chosen: np.ndarray, classes: Sequence[str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe the calibration images.

    Args:
        images: The training images.
        labels: int64 (N,), of all training images.
        chosen: Indices of the calibration images.
        classes: The classes' names.
        facts: The card's `preprocessing`.

    Returns:
        A JSON-ready mapping with `count`; `per_class` (class and images); `pixel_min` and `pixel_max`
        (0..255); `mean` and `std` per channel on the 0..1 scale; and `normalised_mean` and `normalised_std`
        after the preprocessing (about 0 and 1 if it fits these images).
    """
    total = np.zeros(int(facts["channels"]))
    squares = np.zeros_like(total)
    lowest, highest, pixels = 255, 0, 0
    for start in range(0, len(chosen), RUN_BATCH):
        part = images.batch(chosen[start : start + RUN_BATCH])
        scaled = part.reshape(-1, part.shape[-1]).astype(np.float64) * facts["scale"]
        total += scaled.sum(axis=0)
        squares += (scaled**2).sum(axis=0)
        pixels += len(scaled)
        lowest, highest = min(lowest, int(part.min())), max(highest, int(part.max()))
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0.0))
    counts = np.bincount(labels[chosen], minlength=len(classes))
    return {
        "count": len(chosen),
        "per_class": [
            {"class": name, "images": int(number)} for name, number in zip(classes, counts, strict=True)
        ],
        "pixel_min": lowest,
        "pixel_max": highest,
        "mean": _rounded(mean),
        "std": _rounded(std),
        "normalised_mean": _rounded((mean - np.asarray(facts["mean"])) / np.asarray(facts["std"])),
        "normalised_std": _rounded(std / np.asarray(facts["std"])),
    }


def provenance(
    training: Batches, chosen: np.ndarray, holdout: np.ndarray, validation: Batches, validation_count: int
) -> dict[str, Any]:
    """Describe where the calibration images come from, and count repeated, blank and leaked ones.

    Images are compared byte for byte.

    Args:
        training: The training images.
        chosen: Indices of the calibration images in the training images.
        holdout: Indices of the hold-out images in the training images.
        validation: The validation images; up to 20,000 of them, evenly spread, are compared.
        validation_count: Number of validation images.

    Returns:
        A JSON-ready mapping with `drawn_from`, `indices`, `holdout_indices` and `validation_compared`, and
        the number of calibration images that are `repeated` (equal to an earlier one), `blank` (one value
        everywhere), `in_holdout` and `in_validation` (equal to an image there).
    """
    digests, blank = _digests(training, chosen)
    holdout_digests = set(_digests(training, holdout)[0])
    compared = evenly_spread(validation_count, COMPARED_IMAGES)
    validation_digests = set(_digests(validation, compared)[0])
    return {
        "drawn_from": "train",
        "indices": chosen.tolist(),
        "holdout_indices": holdout.tolist(),
        "repeated": len(digests) - len(set(digests)),
        "blank": blank,
        "in_holdout": sum(digest in holdout_digests for digest in digests),
        "in_validation": sum(digest in validation_digests for digest in digests),
        "validation_compared": len(compared),
    }


def _digests(images: Batches, indices: np.ndarray) -> tuple[list[bytes], int]:
    """Return a digest of each image, and the number of images with one value everywhere."""
    digests, blank = [], 0
    for start in range(0, len(indices), RUN_BATCH):
        part = images.batch(indices[start : start + RUN_BATCH])
        digests += [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in part]
        flat = part.reshape(len(part), -1)
        blank += int((flat.min(axis=1) == flat.max(axis=1)).sum())
    return digests, blank


def doubts(facts: Mapping[str, Any]) -> list[str]:
    """Return a warning for each sign of an unsuitable calibration set.

    Args:
        facts: The result of `audit`, with or without that of `provenance`.
    """
    remarks = []
    absent = [entry["class"] for entry in facts["per_class"] if not entry["images"]]
    if absent:
        names = ", ".join(absent[:5]) + (", …" if len(absent) > 5 else "")
        remarks.append(
            f"{len(absent)} classes have no calibration image ({names}): raise quantize.images, "
            "or the ranges may be too narrow for them."
        )
    remarks += _content_doubts(facts)
    least, most = _STD_LIMITS
    if any(abs(mean) > _MEAN_LIMIT for mean in facts["normalised_mean"]) or any(
        not least <= std <= most for std in facts["normalised_std"]
    ):
        remarks.append(
            f"The calibration images are not centred by the preprocessing (mean {facts['normalised_mean']}, "
            f"deviation {facts['normalised_std']} after it, expected about 0 and 1): check that "
            "data.mean and data.std are those of these images."
        )
    return remarks


def _content_doubts(facts: Mapping[str, Any]) -> list[str]:
    count, remarks = facts["count"], []
    if facts.get("blank"):
        remarks.append(
            f"{facts['blank']} of {count} calibration images are blank: they add nothing to the ranges."
        )
    if facts.get("repeated"):
        remarks.append(
            f"{facts['repeated']} of {count} calibration images repeat another of them, byte for byte."
        )
    for split, key in (("held-out", "in_holdout"), ("validation", "in_validation")):
        if facts.get(key):
            remarks.append(
                f"{facts[key]} of {count} calibration images occur among the {split} images as well, byte "
                "for byte: results on those images are too optimistic."
            )
    return remarks


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]
