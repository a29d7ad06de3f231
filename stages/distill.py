"""Distils the student: it learns from the labels and, by the methods, from the frozen teacher.

What is left is the student alone: no projector, no parameter of a loss, nothing of the teacher.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from pipeline.errors import StageError
from pipeline.stage import Context, Metrics
from stages.data.load import DataSet, load
from stages.models import card as cards
from stages.models.create import create
from stages.models.features import Needs
from stages.models.observer import Observer
from stages.training import before, loop, result
from stages.training.checkpoint import Checkpoints, file_digest, identity_of, weights_digest
from stages.training.fabric import launch, resolve
from stages.training.supply import Supply, training_supply
from stages.training.tasks import Alone, Distillation, Task, needs_of


def check(settings: SimpleNamespace) -> None:
    """Raises UsageError or MachineCannot for what the student cannot be distilled with."""
    before.check(settings, settings.student, settings.distill, section="distill")
    needs = needs_of(settings.distill.methods)
    if needs != Needs():
        # The maps that a method names must be there; their number is known without weights.
        bare = settings.student.model_copy(update={"pretrained": False, "checkpoint": None})
        with torch.random.fork_rng(devices=[]):
            Observer(create(bare, classes=2, channels=3, image_size=settings.data.image_size), needs)


def run(context: Context) -> Metrics:
    """Leaves the student's `model.safetensors`, `model.json` and `history.csv`, and with
    `baseline: true` the same of the student that was trained alone. Reads `train`."""
    return launch(_distill, context)


def _distill(fabric: Fabric, context: Context) -> Metrics:
    settings = context.settings
    recipe = settings.distill
    data = load(settings.data)
    teacher, teacher_card = cards.load(context.inputs["train"])
    _same_images(teacher_card, data)
    training = training_supply(data, recipe, split_seed=settings.data.split_seed, device=fabric.device)
    validation = Supply(data.validation, fabric.device)
    before.refuse_large_batch(recipe, training.count, "distill")
    one = loop.images_seen(recipe, training.count)
    total = 2 * one if recipe.baseline else one
    identity = identity_of(
        settings,
        weights=weights_digest(settings.student),
        teacher=file_digest(context.inputs["train"] / cards.WEIGHTS),
        card=str(teacher_card.as_json()),
    )

    def learn(task: Task, name: str, nth: int) -> loop.Outcome:
        return loop.fit(
            fabric,
            task,
            recipe,
            training,
            validation,
            seed=settings.seed,
            compute=settings.compute,
            section="distill",
            told=loop.Told(context.progress, before=nth * one, total=total),
            checkpoints=Checkpoints(context.work / name, f"{name} {identity}", context.progress),
            more_follows=recipe.baseline and nth == 0,
        )

    student = _student(settings, data)
    task = Distillation(
        student,
        teacher,
        recipe.methods,
        (data.preprocessing, teacher_card.preprocessing),
        label_weight=recipe.label_weight,
        labels=torch.from_numpy(training.labels),
    )
    outcome = learn(task, "student", 0)
    metrics = result.metrics(outcome, student, resolve(settings.compute))
    if fabric.global_rank == 0:
        result.write(context.output, student, "student", settings.student, data, recipe, outcome)
    if recipe.baseline:
        # Same first weights, order and views: what differs is what the teacher gave.
        alone = _student(settings, data)
        alone_outcome = learn(Alone(alone, data.preprocessing), "baseline", 1)
        if fabric.global_rank == 0:
            folder: Path = context.output / "baseline"
            result.write(folder, alone, "baseline", settings.student, data, recipe, alone_outcome)
        metrics["baseline_val_top1"] = round(alone_outcome.val_top1, 4)
        metrics["baseline_best_epoch"] = alone_outcome.best_epoch
    result.note_bottleneck(outcome, context.progress, fabric)
    return metrics


def _student(settings: Any, data: DataSet) -> nn.Module:
    """The student as it starts: equal settings give equal weights, whatever was drawn before."""
    torch.manual_seed(settings.seed)
    return create(
        settings.student,
        classes=len(data.classes),
        channels=data.preprocessing.channels,
        image_size=data.preprocessing.image_size,
    )


def _same_images(card: cards.ModelCard, data: DataSet) -> None:
    """The teacher has its own mean and deviation, but must have seen images of this form."""
    mine, its = data.preprocessing, card.preprocessing
    found = (its.image_size, its.channels, tuple(card.classes))
    wanted = (mine.image_size, mine.channels, tuple(data.classes))
    if found != wanted:
        raise StageError(
            "The teacher was trained on other images than the student is to learn from",
            where="distill",
            why=f"image size, channels and classes are {found} for the teacher, {wanted} for the data",
            mend="run the train stage with this profile's data first",
        )
