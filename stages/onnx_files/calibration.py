"""The calibration images: a fair draw from the training images, looked at before they are used."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stages.data.channels import evenly_spread
from stages.onnx_files.sessions import RUN_BATCH, Batches

COMPARED = 20_000
"""So many validation images are compared with the calibration images at the most."""

_STREAM = 3
"""Tells this draw from others made with the same seed."""

_MEAN_LIMIT = 1.0
_STD_LIMITS = (1 / 3, 3.0)
"""Where normalised pixels may lie before the preprocessing is doubted, in standard deviations."""


def draw(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Chooses `count` images, every class as often as every other as far as it has images.

    labels: int64 (N,). Returns int64 indices in the order of use: one image of each class in turn,
    so that any first part of it is balanced too. Equal seeds give equal draws.
    """
    return _in_turns(_shuffled(labels, seed), count)


def divide(labels: np.ndarray, images: int, holdout: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws images to calibrate with, and others to choose with: int64 indices, no image in both.

    Each is drawn as `draw` does. Where a class has fewer images than both want, they share them in
    proportion, so that a rare class is held out too; its only image is calibrated with.
    """
    share = images / (images + holdout)
    members = _shuffled(labels, seed)
    cuts = {label: math.ceil(share * len(own)) for label, own in members.items()}
    first = {label: own[: cuts[label]] for label, own in members.items()}
    rest = {label: own[cuts[label] :] for label, own in members.items()}
    return _in_turns(first, images), _in_turns(rest, holdout)


def _shuffled(labels: np.ndarray, seed: int) -> dict[int, np.ndarray]:
    """The images of each class in an order of its own, which more images of another do not move."""
    found = {}
    for label in np.unique(labels):
        random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, _STREAM, int(label)])))
        found[int(label)] = random.permutation(np.flatnonzero(labels == label))
    return found


def _in_turns(members: Mapping[int, np.ndarray], count: int) -> np.ndarray:
    order = [
        (turn, label, int(index)) for label, own in members.items() for turn, index in enumerate(own[:count])
    ]
    return np.array([index for _, _, index in sorted(order)[:count]], dtype=np.int64)


def audit(
    images: Batches, labels: np.ndarray, chosen: np.ndarray, classes: Sequence[str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """What the calibration images are: JSON-ready.

    facts: the `preprocessing` of the card. Returns `count`; `per_class` (class and images);
    `pixel_min`, `pixel_max` (0..255); `mean` and `std` per channel on the 0..1 scale; and
    `normalised_mean`, `normalised_std`, as the network sees them (about 0 and 1 if the
    preprocessing was made for such images).
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
    """Where the calibration images come from, and what of their content speaks against them: JSON-ready.

    chosen, holdout: indices of training images. Images are compared byte for byte, with up to 20,000 of the
    validation images, evenly spread. Returns `drawn_from`, `indices` and `holdout_indices`; how many of the
    calibration images are `repeated` (another one before them is the same), `blank` (one value everywhere),
    `in_holdout` and `in_validation` (an image there is the same); and `validation_compared`.
    """
    own, blank = _contents(training, chosen)
    held = set(_contents(training, holdout)[0])
    looked_at = evenly_spread(validation_count, COMPARED)
    judged = set(_contents(validation, looked_at)[0])
    return {
        "drawn_from": "train",
        "indices": chosen.tolist(),
        "holdout_indices": holdout.tolist(),
        "repeated": len(own) - len(set(own)),
        "blank": blank,
        "in_holdout": sum(image in held for image in own),
        "in_validation": sum(image in judged for image in own),
        "validation_compared": len(looked_at),
    }


def _contents(images: Batches, indices: np.ndarray) -> tuple[list[bytes], int]:
    """A digest of each image, and how many of them have one value everywhere."""
    found, blank = [], 0
    for start in range(0, len(indices), RUN_BATCH):
        part = images.batch(indices[start : start + RUN_BATCH])
        found += [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in part]
        flat = part.reshape(len(part), -1)
        blank += int((flat.min(axis=1) == flat.max(axis=1)).sum())
    return found, blank


def doubts(found: Mapping[str, Any]) -> list[str]:
    """What in an audit, with or without the provenance, should make one look twice: sentences."""
    remarks = []
    absent = [entry["class"] for entry in found["per_class"] if not entry["images"]]
    if absent:
        named = ", ".join(absent[:5]) + (", …" if len(absent) > 5 else "")
        remarks.append(
            f"{len(absent)} classes have no calibration image ({named}): raise quantize.images, "
            "or the ranges that they need may be missed."
        )
    remarks += _doubts_of_content(found)
    least, most = _STD_LIMITS
    if any(abs(mean) > _MEAN_LIMIT for mean in found["normalised_mean"]) or any(
        not least <= std <= most for std in found["normalised_std"]
    ):
        remarks.append(
            f"The calibration images are not centred by the preprocessing (mean {found['normalised_mean']}, "
            f"deviation {found['normalised_std']} after it, expected about 0 and 1): are data.mean and "
            "data.std those of these images?"
        )
    return remarks


def _doubts_of_content(found: Mapping[str, Any]) -> list[str]:
    count, remarks = found["count"], []
    if found.get("blank"):
        remarks.append(
            f"{found['blank']} of {count} calibration images are blank: they tell nothing of ranges."
        )
    if found.get("repeated"):
        remarks.append(
            f"{found['repeated']} of {count} calibration images repeat another of them, byte for byte."
        )
    for split, key in (("held-out", "in_holdout"), ("validation", "in_validation")):
        if found.get(key):
            remarks.append(
                f"{found[key]} of {count} calibration images occur among the {split} images as well, byte "
                "for byte: what is measured there flatters."
            )
    return remarks


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]
