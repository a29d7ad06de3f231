"""Accuracy as it was taken on a device: predictions for the test images, judged here."""

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
"""What a row says of accuracy until it is known."""


@dataclass(frozen=True)
class Sent:
    """The test images that a device was sent: chosen (n,) of all, their labels (n,), and by `teacher` and
    `student` the classes that the float networks gave them, in PyTorch (n,)."""

    chosen: np.ndarray
    labels: np.ndarray
    of_float: Mapping[str, np.ndarray]

    def float_top1(self) -> dict[str, float]:
        """Of these very images, in per cent: what top-1 on the device can be held against."""
        return {name: scorecard.agreement(found, self.labels) for name, found in self.of_float.items()}


def sent(count: int, context: Context) -> Sent | None:
    """What is known of the images that were sent; None if none were. Labels and classes are kept in the
    artefact, so that gates can be judged on it alone."""
    if not count:
        return None
    judged = json.loads((context.inputs["evaluate"] / "metrics.json").read_text(encoding="utf-8"))
    labels = np.load(context.inputs["measure"] / "predictions" / "labels.npy", allow_pickle=False)
    chosen = evenly_spread(len(labels), count)
    of_float = {
        name: np.asarray(judged[name]["predictions"], np.int32)[chosen] for name in ("teacher", "student")
    }
    kept = context.output / "predictions"
    np.save(kept / "labels.npy", labels[chosen])
    for name, found in of_float.items():
        np.save(kept / f"float_{name}.npy", found)
    return Sent(chosen, labels[chosen], of_float)


def figures(target: str, folder: Path, images: Sent | None, context: Context) -> dict[str, Any]:
    """`top1` with its interval, and agreement with teacher, float student and the host, all in per cent.

    folder: what the device left of the target. The host is the machine that `measure` ran on; None if it
    did not run the target. Predictions are kept in the artefact.
    """
    if images is None:
        return {**NONE, "accuracy_why_not": "accuracy_images of the device is 0"}
    found = np.load(folder / "predictions.npy", allow_pickle=False)
    if found.shape != images.chosen.shape:
        raise StageError(
            "The device did not answer for every test image",
            where=f"target {target}",
            why=f"{len(found)} answers, {len(images.chosen)} images",
            hint="measure again with --force",
        )
    shutil.copyfile(folder / "predictions.npy", context.output / "predictions" / f"{target}.npy")
    kept = context.inputs["measure"] / "predictions" / f"student-{target}.npy"
    return {
        **scorecard.top1(found, images.labels),
        "accuracy_images": len(images.chosen),
        "accuracy_why_not": None,
        "agreement": scorecard.agreement(found, images.of_float["teacher"]),
        "agreement_with_float": scorecard.agreement(found, images.of_float["student"]),
        "agreement_with_host": scorecard.agreement(found, np.load(kept, allow_pickle=False)[images.chosen])
        if kept.is_file()
        else None,
    }
