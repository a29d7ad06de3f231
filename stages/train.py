"""The stage train: the teacher, from random weights, from a checkpoint or from pretrained weights."""

from __future__ import annotations

from types import SimpleNamespace

from lightning_fabric import Fabric

from pipeline.stage import Context, Metrics
from stages.data.load import load
from stages.models.create import create
from stages.models.network_input import network_preprocessing
from stages.training import artefact, checks
from stages.training.checkpoint import Checkpoints, identity_of, weights_digest
from stages.training.fabric import launch, resolve
from stages.training.loop import fit
from stages.training.progress import ProgressSlice, images_seen
from stages.training.recipe import recipe_arguments
from stages.training.settings import TrainSettings
from stages.training.supply import Supply, training_supply
from stages.training.tasks import SupervisedTask


def check(settings: SimpleNamespace) -> None:
    """Raise UsageError or MachineCannot for settings with which the teacher cannot be trained."""
    checks.check(settings, settings.teacher, settings.train, section="train")


def run(context: Context) -> Metrics:
    """Write `model.safetensors`, `model.json` and `history.csv`. Reads no other stage."""
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
    training = training_supply(
        data, fabric.device, fraction=recipe.fraction, split_seed=settings.data.split_seed
    )
    identity = identity_of(settings, weights=weights_digest(settings.teacher))
    total = images_seen(recipe.epochs, recipe.batch_size, training.count)
    outcome = fit(
        fabric,
        SupervisedTask(teacher, preprocessing),
        training,
        Supply(data.validation, fabric.device),
        **recipe_arguments(recipe),
        channels_last=settings.compute.channels_last,
        compile=settings.compute.compile,
        seed=settings.seed,
        section="train",
        progress=ProgressSlice(context.progress, total=total),
        checkpoints=Checkpoints(context.work, identity, context.progress),
    )
    if fabric.global_rank == 0:
        artefact.write_network(
            context.output, teacher, "teacher", settings.teacher, data, recipe.epochs, outcome
        )
    artefact.note_bottleneck(outcome, context.progress, fabric)
    return artefact.training_metrics(outcome, teacher, resolve(settings.compute))
