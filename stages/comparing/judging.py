"""What teacher and students answer to every image of one split."""

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
class Answers:
    """Predicted classes, int16. labels, teacher: (N); best, last: (runs, N), of the epoch with the best
    validation accuracy and of the last one. teacher_parameters: how many the teacher has."""

    classes: int
    labels: np.ndarray
    teacher: np.ndarray
    best: np.ndarray
    last: np.ndarray
    teacher_parameters: int

    def table(self) -> np.ndarray:
        """int16 (2 + 2 * runs, N): labels, teacher, then best and last of every run in turn."""
        pairs = np.stack([self.best, self.last], axis=1).reshape(-1, len(self.labels))
        return np.concatenate([self.labels[None], self.teacher[None], pairs]).astype(np.int16)


def answers(
    settings: Any, split: str, teacher: Path, runs: Sequence[Path], tell: Callable[[int, int], None]
) -> Answers:
    """Judges the artefacts of `train` and `distill` on a split: one reading of it for all of them.

    In float32, as `evaluate` does. settings: compute, data, evaluate. split: validation or test.
    tell: is given the images done and in all.
    """
    data = load(settings.data)
    images = data.test if split == "test" else data.validation
    compute = replace(fabric.resolve(settings.compute), devices=1)
    folders = [teacher]
    for run in runs:
        folders += [run, run / LAST]
    count = len(images.labels)
    found: list[np.ndarray] = []

    def from_here(before: int) -> Callable[[int], None]:
        return lambda done: tell(before + done, len(folders) * count)

    with fabric.reproducible(compute, seed=0, true_fp32=True):
        supply = Supply(images, compute.device)
        for nth, folder in enumerate(folders):
            if folder.name == LAST and _is_best(folder):
                found.append(found[-1])
                continue
            network, card = cards.load(folder)
            logits = predict_logits_by_card(
                network,
                card,
                supply,
                compute,
                batch_size=settings.evaluate.batch_size,
                on_progress=from_here(nth * count),
            )
            found.append(logits.argmax(dim=1).numpy().astype(np.int16))
    return Answers(
        classes=len(data.classes),
        labels=np.asarray(images.labels, dtype=np.int16),
        teacher=found[0],
        best=np.stack(found[1::2]),
        last=np.stack(found[2::2]),
        teacher_parameters=cards.read_card(teacher).parameters,
    )


def _is_best(last: Path) -> bool:
    """Whether the last epoch is the one that was kept, so that it has been judged already."""
    return cards.read_card(last).best_epoch == cards.read_card(last.parent).best_epoch
