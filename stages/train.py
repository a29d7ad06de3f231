"""Train the teacher from random weights, a checkpoint or pretrained weights."""

from __future__ import annotations

from types import SimpleNamespace

from lightning_fabric import Fabric

from pipeline.stage import Context, Metrics
from stages.data.load import load
from stages.models.create import create
from stages.models.network_input import network_preprocessing
from stages.training import batches, before, loop, result
from stages.training.checkpoint import Checkpoints, identity_of, weights_digest
from stages.training.fabric import launch, resolve
from stages.training.settings import TrainSettings
from stages.training.supply import Supply, training_supply
from stages.training.tasks import Alone


def check(settings: SimpleNamespace) -> None:
    """Check that the teacher can be trained with these settings.

    Raises:
        UsageError: The settings or the data are invalid.
        MachineCannot: This machine cannot train with them.
    """
    before.check(settings, settings.teacher, settings.train, section="train")


def run(context: Context) -> Metrics:
    """Write `model.safetensors`, `model.json` and `history.csv`; no other stage's artefact is read."""
    return launch(_train, context)


def _train(fabric: Fabric, context: Context) -> Metrics:
    settings = context.settings
    recipe: TrainSettings = settings.train
    data = load(settings.data)
    for note in data.notes:
        context.progress.note(note)
    preprocessing = network_preprocessing(settings.teacher, data.preprocessing)
    teacher = create(
        settings.teacher,
        classes=len(data.classes),
        channels=preprocessing.channels,
        image_size=preprocessing.side,
    )
    training = training_supply(data, recipe, split_seed=settings.data.split_seed, device=fabric.device)
    batches.refuse_large_batch(recipe, training.count, "train")
    identity = identity_of(settings, weights=weights_digest(settings.teacher))
    outcome = loop.fit(
        fabric,
        Alone(teacher, preprocessing),
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
