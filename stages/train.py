"""Trains the teacher: from random weights, from a checkpoint or from pretrained ones."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from lightning_fabric import Fabric

from pipeline.stage import Context, Metrics
from stages.data.load import load
from stages.data.splits import stratified
from stages.models.create import create
from stages.training import before, loop, result
from stages.training.checkpoint import Checkpoints, file_digest, identity_of
from stages.training.fabric import launch, resolve
from stages.training.settings import TrainSettings
from stages.training.supply import Supply
from stages.training.tasks import Alone


def check(settings: SimpleNamespace) -> None:
    """Raises UsageError or MachineCannot for what the teacher cannot be trained with."""
    before.check(settings, settings.teacher, settings.train, section="train")


def run(context: Context) -> Metrics:
    """Leaves `model.safetensors`, `model.json` and `history.csv`. Reads no other stage."""
    return launch(_train, context)


def _train(fabric: Fabric, context: Context) -> Metrics:
    settings = context.settings
    recipe: TrainSettings = settings.train
    data = load(settings.data)
    for note in data.notes:
        context.progress.note(note)
    teacher = create(
        settings.teacher,
        classes=len(data.classes),
        channels=data.preprocessing.channels,
        image_size=data.preprocessing.image_size,
    )
    part: np.ndarray | None = None
    if recipe.fraction < 1.0:
        part = stratified(data.train.labels, recipe.fraction, settings.data.split_seed)
    training = Supply(data.train, fabric.device, part=part)
    if recipe.epochs:
        before.refuse_large_batch(recipe, training.count, "train")
    identity = identity_of(settings, weights=weights_digest(settings.teacher.checkpoint))
    outcome = loop.fit(
        fabric,
        Alone(teacher, data.preprocessing),
        recipe,
        training,
        Supply(data.validation, fabric.device),
        seed=settings.seed,
        compute=settings.compute,
        section="train",
        told=loop.Told(context.progress, total=loop.images_seen(recipe, training.count)),
        checkpoints=Checkpoints(context.work, identity, context.progress),
    )
    if fabric.global_rank == 0:
        result.write(context.output, teacher, "teacher", settings.teacher, data, recipe, outcome)
    result.note_bottleneck(outcome, context.progress, fabric)
    return result.metrics(outcome, teacher, resolve(settings.compute))
