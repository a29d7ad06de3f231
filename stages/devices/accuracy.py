"""Accuracy as it was taken on a device: predictions for the test images, judged here."""

from __future__ import annotations

import json
import shutil
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


def figures(target: str, folder: Path, count: int, context: Context) -> dict[str, Any]:
    """`top1` with its interval, and agreement with teacher, float student and the host, all in per cent.

    folder: what the device left of the target. count: how many test images it was sent. The host is the
    machine that `measure` ran on; None if it did not run the target. Predictions are kept in the artefact.
    """
    if not count:
        return {**NONE, "accuracy_why_not": "accuracy_images of the device is 0"}
    judged = json.loads((context.inputs["evaluate"] / "metrics.json").read_text(encoding="utf-8"))
    host = context.inputs["measure"] / "predictions"
    labels = np.load(host / "labels.npy", allow_pickle=False)
    chosen = evenly_spread(len(labels), count)
    found = np.load(folder / "predictions.npy", allow_pickle=False)
    if found.shape != chosen.shape:
        raise StageError(
            "The device did not answer for every test image",
            where=f"target {target}",
            why=f"{len(found)} answers, {len(chosen)} images",
            mend="measure again with --force",
        )
    shutil.copyfile(folder / "predictions.npy", context.output / "predictions" / f"{target}.npy")
    kept = host / f"student-{target}.npy"
    return {
        **scorecard.top1(found, labels[chosen]),
        "accuracy_images": len(chosen),
        "accuracy_why_not": None,
        "agreement": scorecard.alike(found, np.asarray(judged["teacher"]["predictions"])[chosen]),
        "agreement_with_float": scorecard.alike(found, np.asarray(judged["student"]["predictions"])[chosen]),
        "agreement_with_host": scorecard.alike(found, np.load(kept, allow_pickle=False)[chosen])
        if kept.is_file()
        else None,
    }
