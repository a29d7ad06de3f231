"""The fine-tune: the folded student learns under the rounding of its INT8 file, from labels and teacher."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import torch
from lightning_fabric import Fabric
from torch import nn

from pipeline.hashing import hash_file
from pipeline.stage import Context, Metrics, Progress
from stages.data.load import DataSet, load
from stages.data.preprocessing import Preprocessing
from stages.models import card as cards
from stages.onnx_files.exporting import export_network
from stages.onnx_files.graph_proof import prove_graph
from stages.onnx_files.metadata import feed
from stages.quantization_aware.folding import FoldedNetwork, fold_normalisations
from stages.quantization_aware.rounded_file import RoundedFile, read_rounding
from stages.quantization_aware.rounding_places import RoundingPlaces, find_rounding_places
from stages.quantization_aware.simulation import simulate
from stages.quantizing.settings import SECTION, fine_tune_recipe
from stages.training.checkpoint import Checkpoints, identity_of
from stages.training.fabric import launch
from stages.training.loop import fit
from stages.training.outcome import Outcome
from stages.training.progress import ProgressSlice, images_seen
from stages.training.recipe import recipe_arguments
from stages.training.seeds import derive_seed
from stages.training.settings import RecipeSettings
from stages.training.supply import Normalise, Supply, training_supply
from stages.training.tasks import Distillation, SupervisedTask, Task

PROBE_IMAGES = 4
"""Images that show which module a rounding belongs to: no two activations are equal on all of them."""

BATCH_MAX = 1024
"""Upper bound of the batch while exporting; it is not part of the file."""


@dataclass(frozen=True)
class FineTuneJob:
    """The files of one fine-tune.

    Attributes:
        name: Name of the recipe.
        int8: The INT8 file.
        graph: The prepared float graph that it was quantized from.
        tuned: Where the float ONNX file of the fine-tuned student is written.
        checkpoints: Folder of the checkpoints; a killed run leaves it.
        card: `student.json`.
    """

    name: str
    int8: Path
    graph: Path
    tuned: Path
    checkpoints: Path
    card: Mapping[str, Any]


def fine_tune(context: Context, job: FineTuneJob) -> Metrics:
    """Fine-tune the student under the rounding of `job.int8`, and write `job.tuned`.

    A killed fine-tune resumes from its checkpoint.

    Args:
        context: The stage's context, with the artefacts `train` and `distill`; of the settings `seed`,
            `compute`, `data`, `distill` and `quantize.distill` count.
        job: The files.

    Returns:
        JSON-ready: `facts` for `calibration.json`, and `ranges` by activation of the float graph, at the
        end of the training. If no rounding can be simulated, there are no `ranges`, and no file is written.

    Raises:
        StageError: A loss is not finite.
    """
    # Bound here, because a process for each device receives it.
    return launch(functools.partial(_fine_tune, job=job), context)


def _fine_tune(fabric: Fabric, context: Context, *, job: FineTuneJob) -> Metrics:
    settings = context.settings
    own = settings.quantize.distill
    recipe = fine_tune_recipe(own, settings.distill)
    data = load(settings.data)
    student, card = cards.load(context.inputs["distill"])
    file = read_rounding(onnx.load(job.int8))
    folded, places = _fold_and_place(student, file, data, card.preprocessing, job)
    if not places.weights:
        return {"facts": {"places": places.as_json()}}
    simulation = simulate(folded.network, file, places, learn_ranges=own.learn_ranges)
    training = training_supply(
        data, fabric.device, fraction=recipe.fraction, split_seed=settings.data.split_seed
    )
    seed = settings.seed if settings.distill.seed is None else settings.distill.seed
    total = images_seen(recipe.epochs, recipe.batch_size, training.count)
    outcome = fit(
        fabric,
        create_task(folded.network, card.preprocessing, context, training),
        training,
        Supply(data.validation, fabric.device),
        **recipe_arguments(recipe),
        channels_last=settings.compute.channels_last,
        # torch.compile traces hooks and parametrisations badly, and three epochs do not repay its time.
        compile=False,
        # Epochs count from 1 again; another seed gives other orders and views than the student has seen.
        seed=derive_seed(seed, 0, f"{SECTION} {job.name}") % 2**31,
        section=SECTION,
        progress=ProgressSlice(_FineTuneProgress(context.progress, job.name), total=total),
        checkpoints=Checkpoints(job.checkpoints, _identity(context, job), context.progress),
        more_follows=True,
    )
    ranges = simulation.ranges()
    simulation.remove()
    if fabric.global_rank == 0:
        _export(folded.network, job)
    return {"ranges": ranges, "facts": _facts(recipe, outcome, folded, places)}


def _fold_and_place(
    student: nn.Module, file: RoundedFile, data: DataSet, preprocessing: Preprocessing, job: FineTuneJob
) -> tuple[FoldedNetwork, RoundingPlaces]:
    """Return the folded student, and its modules for the file's roundings, by a few validation images."""
    pixels = data.validation.images.batch(np.arange(min(PROBE_IMAGES, len(data.validation))))
    normalise = Normalise(preprocessing, torch.device("cpu"), channels_last=False)
    images = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    folded = fold_normalisations(student, images)
    graph = onnx.load(job.graph)
    return folded, find_rounding_places(folded.network, file, graph, feed(pixels, job.card), images)


def create_task(network: nn.Module, preprocessing: Preprocessing, context: Context, training: Supply) -> Task:
    """Return the task of the stage distill: the same teacher, and the same methods with new parameters.

    The methods have their full weight from the first step: the student has had the warm-up, and a short
    fine-tune would be over before a second one.

    Args:
        network: The network to fine-tune.
        preprocessing: The network's preprocessing.
        context: The stage's context, with the artefact `train`.
        training: Training images.
    """
    distill = context.settings.distill
    if not distill.methods:
        return SupervisedTask(network, preprocessing)
    teacher, teacher_card = cards.load(context.inputs["train"])
    return Distillation(
        network,
        teacher,
        [method.model_copy(update={"warmup_epochs": 0.0}) for method in distill.methods],
        (preprocessing, teacher_card.preprocessing),
        label_weight=distill.label_weight,
        labels=torch.from_numpy(training.labels),
    )


def _identity(context: Context, job: FineTuneJob) -> str:
    """Return the identity of this fine-tune: checkpoints of another are not used."""
    settings = context.settings
    relevant = SimpleNamespace(
        seed=settings.seed,
        compute=settings.compute,
        data=settings.data,
        distill=settings.distill,
        own=settings.quantize.distill,
    )
    files = {name: hash_file(context.inputs[name] / cards.WEIGHTS) for name in ("train", "distill")}
    return f"{SECTION} {job.name} {identity_of(relevant, int8=hash_file(job.int8), **files)}"


def _export(network: nn.Module, job: FineTuneJob) -> None:
    """Export the fine-tuned student like the stage export: same operator set, same names."""
    opset = next(entry.version for entry in onnx.load(job.graph).opset_import if entry.domain == "")
    exported = export_network(network, job.card, role="student", opset=opset, batch_max=BATCH_MAX)
    job.tuned.write_bytes(prove_graph(exported.model, job.card, role="student", opset=opset))


def _facts(
    recipe: RecipeSettings, outcome: Outcome, folded: FoldedNetwork, places: RoundingPlaces
) -> dict[str, Any]:
    return {
        "epochs": recipe.epochs,
        "best_epoch": outcome.best_epoch,
        "learning_rate": recipe.learning_rate,
        "batch_size": recipe.batch_size,
        "fraction": recipe.fraction,
        "simulated_top1": round(outcome.val_top1, 4),
        "history": [
            {
                "epoch": int(row["epoch"]),
                "train_loss": round(row["train_loss"], 5),
                "val_top1": row["val_top1"],
            }
            for row in outcome.history
        ],
        "normalisations": {"folded": folded.count, "left": list(folded.unfolded)},
        "places": places.as_json(),
    }


@dataclass(frozen=True)
class _FineTuneProgress:
    """Progress under the name of the recipe, because a stage may fine-tune for several recipes.

    Attributes:
        progress: The stage's progress reporter.
        recipe: Name of the recipe.
    """

    progress: Progress
    recipe: str

    def update(self, done: float, total: float, unit: str = "", **figures: float | str) -> None:
        """Report an update (`Progress.update`)."""
        self.progress.update(done, total, unit, quantization_aware=self.recipe, **figures)

    def note(self, text: str) -> None:
        """Report a note (`Progress.note`)."""
        self.progress.note(f"quantization-aware, recipe {self.recipe}: {text}")
