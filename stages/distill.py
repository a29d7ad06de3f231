"""Distils the student: it learns from the labels and, by the methods, from the frozen teacher.

Without a method it learns from the labels alone, and the teacher is not looked at. What is left is
the student alone: no projector, no parameter of a loss, nothing of the teacher, unless a method
builds the student with them (`Method.build_student`).
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from pipeline.errors import StageError, UsageError
from pipeline.hashing import hash_file
from pipeline.stage import Context, Metrics
from stages.data.load import DataSet, load
from stages.methods import registry
from stages.models import card as cards
from stages.models.create import create
from stages.models.features import Needs
from stages.models.network_input import network_preprocessing
from stages.models.observer import Observer
from stages.training import batches, before, loop, result
from stages.training.checkpoint import Checkpoints, identity_of, weights_digest
from stages.training.fabric import launch, resolve
from stages.training.supply import Supply, training_supply
from stages.training.tasks import Alone, Distillation, Task, needs_of


def check(settings: SimpleNamespace) -> None:
    """Raises UsageError or MachineCannot for what the student cannot be distilled with."""
    own, size = settings.student.image_size, settings.data.image_size
    if own not in (None, size):
        raise UsageError(
            f"A student of {own} pixels cannot be fed from images of {size}",
            where="student.image_size",
            why="its files take the data's images as they are; a teacher alone may see them at another size",
            hint=f"--set data.image_size={own}, or leave student.image_size out",
        )
    before.check(settings, settings.student, settings.distill, section="distill")
    recipe = settings.distill
    needs, builds = needs_of(recipe.methods), registry.builds_student(recipe.methods)
    if builds and not recipe.epochs:
        raise UsageError(
            "With distill.epochs: 0 what the methods add to the student keeps its random weights",
            where="distill.epochs",
            hint="--set distill.epochs=20",
        )
    if needs != Needs() or builds:
        # The maps that a method names must be there; their number is known without weights.
        bare = settings.student.model_copy(update={"pretrained": False, "checkpoint": None})
        with torch.random.fork_rng(devices=[]):
            network = create(bare, classes=2, channels=3, image_size=size)
            Observer(network, needs)
            registry.check_student(recipe.methods, network, image_size=size, channels=3)


def run(context: Context) -> Metrics:
    """Leaves the student's `model.safetensors`, `model.json` and `history.csv`, in `last/` the last
    epoch's weights and card, and with `baseline: true` the first three of the student that was
    trained alone. Reads `train`."""
    return launch(_distill, context)


def _distill(fabric: Fabric, context: Context) -> Metrics:
    settings = context.settings
    recipe = settings.distill
    data = load(settings.data)
    teacher_card = cards.read_card(context.inputs["train"])
    _same_images(teacher_card, data)
    training = training_supply(data, recipe, split_seed=settings.data.split_seed, device=fabric.device)
    validation = Supply(data.validation, fabric.device)
    batches.refuse_large_batch(recipe, training.count, "distill")
    one = loop.images_seen(recipe, training.count)
    total = 2 * one if recipe.baseline else one
    seed = settings.seed if recipe.seed is None else recipe.seed
    identity = identity_of(
        settings,
        weights=weights_digest(settings.student),
        teacher=hash_file(context.inputs["train"] / cards.WEIGHTS),
        card=str(teacher_card.as_json()),
    )

    def learn(task: Task, name: str, nth: int) -> loop.Outcome:
        return loop.fit(
            fabric,
            task,
            recipe,
            training,
            validation,
            seed=seed,
            compute=settings.compute,
            section="distill",
            told=loop.Told(context.progress, before=nth * one, total=total),
            checkpoints=Checkpoints(context.work / name, f"{name} {identity}", context.progress),
            more_follows=recipe.baseline and nth == 0,
        )

    preprocessing = network_preprocessing(settings.student, data.preprocessing)
    student = _student(settings, data, seed)
    task: Task = Alone(student, preprocessing)
    if recipe.methods:
        teacher, _ = cards.load(context.inputs["train"])
        student = registry.build_student(
            recipe.methods,
            student,
            teacher,
            image_sizes=(preprocessing.side, teacher_card.preprocessing.side),
            channels=preprocessing.channels,
        )
        task = Distillation(
            student,
            teacher,
            recipe.methods,
            (preprocessing, teacher_card.preprocessing),
            label_weight=recipe.label_weight,
            labels=torch.from_numpy(training.labels),
        )
    _forget_peak(fabric.device)
    outcome = learn(task, "student", 0)
    metrics = result.metrics(outcome, student, resolve(settings.compute))
    metrics["method_parameters"] = result.parameters(task) - metrics["parameters"]
    metrics["peak_memory_bytes"] = _peak_bytes(fabric.device)
    if fabric.global_rank == 0:
        result.write(context.output, student, "student", settings.student, data, recipe, outcome)
        result.write_last(context.output, student, outcome)
    if recipe.baseline:
        # Same first weights, order and views: what differs is what the teacher gave.
        alone = _student(settings, data, seed)
        alone_outcome = learn(Alone(alone, preprocessing), "baseline", 1)
        if fabric.global_rank == 0:
            folder: Path = context.output / "baseline"
            result.write(folder, alone, "baseline", settings.student, data, recipe, alone_outcome)
        metrics["baseline_val_top1"] = round(alone_outcome.val_top1, 4)
        metrics["baseline_best_epoch"] = alone_outcome.best_epoch
    result.note_bottleneck(outcome, context.progress, fabric)
    return metrics


def _student(settings: Any, data: DataSet, seed: int) -> nn.Module:
    """The student as it starts: equal settings give equal weights, whatever was drawn before."""
    torch.manual_seed(seed)
    return create(
        settings.student,
        classes=len(data.classes),
        channels=data.preprocessing.channels,
        image_size=data.preprocessing.image_size,
    )


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_bytes(device: torch.device) -> int | None:
    """The most that lay on the GPU at once; None on a CPU, where other things share the process's memory."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _same_images(card: cards.ModelCard, data: DataSet) -> None:
    """The teacher has its own constants and its own size, but must be fed from images of this form."""
    mine, its = data.preprocessing, card.preprocessing
    found = (its.image_size, its.channels, tuple(card.classes))
    wanted = (mine.image_size, mine.channels, tuple(data.classes))
    if found != wanted:
        raise StageError(
            "The teacher was trained on other images than the student is to learn from",
            where="distill",
            why=f"image size, channels and classes are {found} for the teacher, {wanted} for the data",
            hint="run the train stage with this profile's data first",
        )
