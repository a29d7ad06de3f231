"""Accuracy on a device: predictions for the test images, taken there and judged here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import StageError
from pipeline.stage import Context
from stages.data.channels import evenly_spread
from stages.measuring import scorecard

NONE: dict[str, Any] = {
    "accuracy_images": None,
    "accuracy_why_not": "the target was not run there",
    "agreement_with_host": None,
}
"""The accuracy fields of a row until they are known."""


@dataclass(frozen=True)
class DeviceTestSet:
    """The test images that a device was sent.

    Attributes:
        chosen: indices into all test images, (n,).
        labels: their classes, (n,).
        of_float: by `teacher` and `student`, the classes that the float networks predict in PyTorch, (n,).
    """

    chosen: np.ndarray
    labels: np.ndarray
    of_float: Mapping[str, np.ndarray]

    def float_top1(self) -> dict[str, float]:
        """Return top-1 of the float networks on these very images, in per cent."""
        return {
            name: scorecard.agreement(predictions, self.labels) for name, predictions in self.of_float.items()
        }


def device_test_set(count: int, context: Context) -> DeviceTestSet | None:
    """Return the images that were sent; None if none were.

    Labels and classes are written into the artefact, so that gates can be judged from it only.
    """
    if not count:
        return None
    metrics = json.loads((context.inputs["evaluate"] / "metrics.json").read_text(encoding="utf-8"))
    labels = np.load(context.inputs["measure"] / "predictions" / "labels.npy", allow_pickle=False)
    chosen = evenly_spread(len(labels), count)
    of_float = {
        name: np.asarray(metrics[name]["predictions"], np.int32)[chosen] for name in ("teacher", "student")
    }
    folder = context.output / "predictions"
    np.save(folder / "labels.npy", labels[chosen])
    for name, predictions in of_float.items():
        np.save(folder / f"float_{name}.npy", predictions)
    return DeviceTestSet(chosen, labels[chosen], of_float)


def figures(target: str, folder: Path, images: DeviceTestSet | None, context: Context) -> dict[str, Any]:
    """Return `top1` with its interval, and agreement with teacher, float student and the host, in per cent.

    The host is the machine that `measure` ran on; None if it did not run the target. The predictions are
    copied into the artefact.

    Args:
        target: its name.
        folder: the target's results from the device.
        images: what it was run on; None: nothing.
        context: of the stage.

    Raises:
        StageError: the device did not answer for every image.
    """
    if images is None:
        return {**NONE, "accuracy_why_not": "accuracy_images of the device is 0"}
    predictions = np.load(folder / "predictions.npy", allow_pickle=False)
    if predictions.shape != images.chosen.shape:
        raise StageError(
            "The device did not answer for every test image",
            where=f"target {target}",
            why=f"{len(predictions)} answers, {len(images.chosen)} images",
            hint="measure again with --force",
        )
    shutil.copyfile(folder / "predictions.npy", context.output / "predictions" / f"{target}.npy")
    on_host = context.inputs["measure"] / "predictions" / f"student-{target}.npy"
    return {
        **scorecard.top1(predictions, images.labels),
        "accuracy_images": len(images.chosen),
        "accuracy_why_not": None,
        "agreement": scorecard.agreement(predictions, images.of_float["teacher"]),
        "agreement_with_float": scorecard.agreement(predictions, images.of_float["student"]),
        "agreement_with_host": scorecard.agreement(
            predictions, np.load(on_host, allow_pickle=False)[images.chosen]
        )
        if on_host.is_file()
        else None,
    }
