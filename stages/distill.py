"""The stage distill: the student learns from the labels and, by the methods, from the frozen teacher.

Without a method it learns only from the labels, and the teacher's weights are not read. The result is
only the student: no projector, no parameter of a loss, nothing of the teacher, unless a method builds
the student with them (`Method.build_student`).
"""

from __future__ import annotations

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
from stages.training import artefact, checks
from stages.training.checkpoint import Checkpoints, identity_of, weights_digest
from stages.training.fabric import launch, resolve
from stages.training.loop import fit
from stages.training.outcome import Outcome
from stages.training.progress import ProgressSlice, images_seen
from stages.training.recipe import recipe_arguments
from stages.training.supply import Supply, training_supply
from stages.training.tasks import Distillation, SupervisedTask, Task, needs_of


def check(settings: SimpleNamespace) -> None:
    """Raise UsageError or MachineCannot for settings with which the student cannot be distilled."""
    student_size, size = settings.student.image_size, settings.data.image_size
    if student_size not in (None, size):
        raise UsageError(
            f"A student of {student_size} pixels cannot take images of {size}",
            where="student.image_size",
            why="its files take the data's images unchanged; only a teacher may take them at another size",
            hint=f"--set data.image_size={student_size}, or leave student.image_size out",
        )
    checks.check(settings, settings.student, settings.distill, section="distill")
    recipe = settings.distill
    needs, builds = needs_of(recipe.methods), registry.builds_student(recipe.methods)
    if builds and not recipe.epochs:
        raise UsageError(
            "With distill.epochs: 0 the layers that the methods add to the student keep random weights",
            where="distill.epochs",
            hint="--set distill.epochs=20",
        )
    if needs != Needs() or builds:
        # The maps that a method names must exist; their number does not depend on the weights.
        bare = settings.student.model_copy(update={"pretrained": False, "checkpoint": None})
        with torch.random.fork_rng(devices=[]):
            network = create(bare, classes=2, channels=3, image_size=size)
            Observer(network, needs)
            registry.check_student(recipe.methods, network, image_size=size, channels=3)


def run(context: Context) -> Metrics:
    """Write the student's `model.safetensors`, `model.json` and `history.csv`. Reads `train`.

    `last/` has weights and card of the last epoch. With `baseline: true`, `baseline/` has the three files
    of the student that learned only from the labels.
    """
    return launch(_distill, context)


def _distill(fabric: Fabric, context: Context) -> Metrics:
    settings = context.settings
    recipe = settings.distill
    data = load(settings.data)
    teacher_card = cards.read_card(context.inputs["train"])
    _refuse_other_images(teacher_card, data)
    training = training_supply(
        data, fabric.device, fraction=recipe.fraction, split_seed=settings.data.split_seed
    )
    validation = Supply(data.validation, fabric.device)
    images = images_seen(recipe.epochs, recipe.batch_size, training.count)
    total = 2 * images if recipe.baseline else images
    seed = settings.seed if recipe.seed is None else recipe.seed
    identity = identity_of(
        settings,
        weights=weights_digest(settings.student),
        teacher=hash_file(context.inputs["train"] / cards.WEIGHTS),
        card=str(teacher_card.as_json()),
    )

    def train(task: Task, name: str, before: int) -> Outcome:
        return fit(
            fabric,
            task,
            training,
            validation,
            **recipe_arguments(recipe),
            channels_last=settings.compute.channels_last,
            compile=settings.compute.compile,
            seed=seed,
            section="distill",
            progress=ProgressSlice(context.progress, before=before, total=total),
            checkpoints=Checkpoints(context.work / name, f"{name} {identity}", context.progress),
            more_follows=recipe.baseline and name == "student",
        )

    preprocessing = network_preprocessing(settings.student, data.preprocessing)
    student = _create_student(settings, data, seed)
    task: Task = SupervisedTask(student, preprocessing)
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
    _reset_peak_memory(fabric.device)
    outcome = train(task, "student", before=0)
    metrics = artefact.training_metrics(outcome, student, resolve(settings.compute))
    metrics["method_parameters"] = artefact.count_parameters(task) - metrics["parameters"]
    metrics["peak_memory_bytes"] = _peak_memory_bytes(fabric.device)
    if fabric.global_rank == 0:
        artefact.write_network(
            context.output, student, "student", settings.student, data, recipe.epochs, outcome
        )
        artefact.write_last_epoch(context.output, student, outcome)
    if recipe.baseline:
        # Same first weights, order and views: only the teacher makes the difference.
        baseline = _create_student(settings, data, seed)
        baseline_outcome = train(SupervisedTask(baseline, preprocessing), "baseline", before=images)
        if fabric.global_rank == 0:
            artefact.write_network(
                context.output / "baseline",
                baseline,
                "baseline",
                settings.student,
                data,
                recipe.epochs,
                baseline_outcome,
            )
        metrics["baseline_val_top1"] = round(baseline_outcome.val_top1, 4)
        metrics["baseline_best_epoch"] = baseline_outcome.best_epoch
    artefact.note_bottleneck(outcome, context.progress, fabric)
    return metrics


def _create_student(settings: Any, data: DataSet, seed: int) -> nn.Module:
    """Return the student with its starting weights: equal settings and seeds give equal weights."""
    torch.manual_seed(seed)
    return create(
        settings.student,
        classes=len(data.classes),
        channels=data.preprocessing.channels,
        image_size=data.preprocessing.image_size,
    )


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_memory_bytes(device: torch.device) -> int | None:
    """Return the GPU's peak memory; None on a CPU, where other objects share the process's memory."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _refuse_other_images(card: cards.ModelCard, data: DataSet) -> None:
    """Raise StageError if the teacher was trained on images of another size, channels or classes.

    Its constants and its network size may differ.
    """
    teacher = (card.preprocessing.image_size, card.preprocessing.channels, tuple(card.classes))
    student = (data.preprocessing.image_size, data.preprocessing.channels, tuple(data.classes))
    if teacher != student:
        raise StageError(
            "The teacher was trained on other images than the student is to learn from",
            where="distill",
            why=f"image size, channels and classes are {teacher} for the teacher, {student} for the data",
            hint="run the train stage with this profile's data first",
        )
