"""Predict the class of every image of a split with the teacher and all students."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stages.data.load import load
from stages.models import card as cards
from stages.training import fabric
from stages.training.evaluation import predict_logits_by_card
from stages.training.supply import Supply

LAST = "last"
"""The folder of the last epoch's weights in an artefact of `distill`."""


@dataclass(frozen=True)
class Predictions:
    """The predicted classes of all networks, int16.

    Attributes:
        classes: The number of classes.
        labels: The true classes, (N,).
        teacher: Those of the teacher, (N,).
        best: Those of each run's epoch with the best validation accuracy, (runs, N).
        last: Those of each run's last epoch, (runs, N).
        teacher_parameters: The number of the teacher's parameters.
    """

    classes: int
    labels: np.ndarray
    teacher: np.ndarray
    best: np.ndarray
    last: np.ndarray
    teacher_parameters: int

    def table(self) -> np.ndarray:
        """Return labels, teacher, then best and last of each run, int16 (2 + 2 * runs, N)."""
        pairs = np.stack([self.best, self.last], axis=1).reshape(-1, len(self.labels))
        return np.concatenate([self.labels[None], self.teacher[None], pairs]).astype(np.int16)


def predict(
    settings: Any, split: str, teacher: Path, runs: Sequence[Path], report: Callable[[int, int], None]
) -> Predictions:
    """Predict a split with the networks of `train` and `distill`, in float32; the split is read once.

    Args:
        settings: The sections compute, data and evaluate of the profile.
        split: `validation` or `test`.
        teacher: The folder of train's artefact.
        runs: The folders of distill's artefacts.
        report: Is called with the number of images that are done, and of all.
    """
    data = load(settings.data)
    images = data.test if split == "test" else data.validation
    compute = replace(fabric.resolve(settings.compute), devices=1)
    folders = [teacher]
    for run in runs:
        folders += [run, run / LAST]
    count = len(images.labels)
    predicted: list[np.ndarray] = []

    def report_after(before: int) -> Callable[[int], None]:
        return lambda done: report(before + done, len(folders) * count)

    with fabric.reproducible(compute, seed=0, true_fp32=True):
        supply = Supply(images, compute.device)
        for nth, folder in enumerate(folders):
            if folder.name == LAST and _is_best(folder):
                predicted.append(predicted[-1])
                continue
            network, card = cards.load(folder)
            logits = predict_logits_by_card(
                network,
                card,
                supply,
                compute,
                batch_size=settings.evaluate.batch_size,
                on_progress=report_after(nth * count),
            )
            predicted.append(logits.argmax(dim=1).numpy().astype(np.int16))
    return Predictions(
        classes=len(data.classes),
        labels=np.asarray(images.labels, dtype=np.int16),
        teacher=predicted[0],
        best=np.stack(predicted[1::2]),
        last=np.stack(predicted[2::2]),
        teacher_parameters=cards.read_card(teacher).parameters,
    )


def _is_best(last: Path) -> bool:
    """Return whether the last epoch is also the best, so that its predictions are known."""
    return cards.read_card(last).best_epoch == cards.read_card(last.parent).best_epoch
