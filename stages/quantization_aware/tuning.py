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
from pipeline.stage import Context, Metrics
from stages.data.load import DataSet, load
from stages.data.preprocessing import Preprocessing
from stages.models import card as cards
from stages.onnx_files.exporting import export_network
from stages.onnx_files.graph_proof import prove_graph
from stages.onnx_files.metadata import feed
from stages.quantization_aware.folding import Folded, folded
from stages.quantization_aware.placing import Places, find_places
from stages.quantization_aware.reading import RoundedFile, read_rounding
from stages.quantization_aware.simulating import simulate
from stages.quantizing.settings import SECTION, recipe_of
from stages.training import batches, loop
from stages.training.augment import seed_of
from stages.training.checkpoint import Checkpoints, identity_of
from stages.training.fabric import launch
from stages.training.settings import RecipeSettings
from stages.training.supply import Normalise, Supply, training_supply
from stages.training.tasks import Alone, Distillation, Task

LOOKED_AT = 4
"""Images that show which module a rounding belongs to: no two activations are alike on all of them."""

BATCH_MAX = 1024
"""Upper bound of the batch while exporting; it leaves no trace in the file."""


@dataclass(frozen=True)
class Job:
    """One INT8 file to be recovered.

    name: of its recipe. int8, graph: that file and the prepared float graph it was made from. tuned:
    where the float ONNX file of the fine-tuned student is left. checkpoints: a folder that survives a
    kill. card: `student.json`.
    """

    name: str
    int8: Path
    graph: Path
    tuned: Path
    checkpoints: Path
    card: Mapping[str, Any]


def tune(context: Context, job: Job) -> Metrics:
    """Fine-tunes the student under the rounding of `job.int8` and leaves `job.tuned`.

    Reads the artefacts `train` and `distill`, and of the settings `seed`, `compute`, `data`, `distill`
    and `quantize.distill`. A killed fine-tune goes on from its checkpoint. Returns, JSON-ready: `facts`
    for `calibration.json`, and `ranges` by activation of the float graph, those it was trained with at
    the end; no `ranges` if nothing of the file can be simulated, and then no file either.
    Raises StageError if a loss is not finite.
    """
    # Bound, as a process for each device is given it.
    return launch(functools.partial(_tune, job=job), context)


def _tune(fabric: Fabric, context: Context, *, job: Job) -> Metrics:
    settings = context.settings
    own, recipe = settings.quantize.distill, recipe_of(settings.quantize.distill, settings.distill)
    data = load(settings.data)
    student, card = cards.load(context.inputs["distill"])
    file = read_rounding(onnx.load(job.int8))
    bare, places = _found(student, file, data, card.preprocessing, job)
    if not places.weights:
        return {"facts": {"places": places.as_json()}}
    simulation = simulate(bare.network, file, places, learn_ranges=own.learn_ranges)
    training = training_supply(data, recipe, split_seed=settings.data.split_seed, device=fabric.device)
    batches.refuse_large_batch(recipe, training.count, SECTION)
    seed = settings.seed if settings.distill.seed is None else settings.distill.seed
    outcome = loop.fit(
        fabric,
        task_of(bare.network, card.preprocessing, context, training),
        recipe,
        training,
        Supply(data.validation, fabric.device),
        # Other orders and views than those that the student has seen, as long as epochs are counted anew.
        seed=seed_of(seed, 0, f"{SECTION} {job.name}") % 2**31,
        # Hooks and parametrisations are traced badly, and three epochs do not pay for compiling.
        compute=settings.compute.model_copy(update={"compile": False}),
        section=SECTION,
        told=loop.Told(_Telling(context.progress, job.name), total=loop.images_seen(recipe, training.count)),
        checkpoints=Checkpoints(job.checkpoints, _identity(context, job), context.progress),
        more_follows=True,
    )
    ranges = simulation.ranges()
    simulation.end()
    if fabric.global_rank == 0:
        _export(bare.network, job)
    return {"ranges": ranges, "facts": _facts(recipe, outcome, bare, places)}


def _found(
    student: nn.Module, file: RoundedFile, data: DataSet, preprocessing: Preprocessing, job: Job
) -> tuple[Folded, Places]:
    """The folded student, and where the file's roundings belong in it, found on a few real images."""
    shown = data.validation.images.batch(np.arange(min(LOOKED_AT, len(data.validation))))
    normalise = Normalise(preprocessing, torch.device("cpu"), channels_last=False)
    images = normalise(torch.from_numpy(shown).permute(0, 3, 1, 2))
    bare = folded(student, images)
    graph = onnx.load(job.graph)
    return bare, find_places(bare.network, file, graph, feed(shown, job.card), images)


def task_of(network: nn.Module, preprocessing: Preprocessing, context: Context, training: Supply) -> Task:
    """As the stage distill has it: the same teacher, the same methods, whose own parameters start anew. Their
    weights are whole from the first step: the student has had the warm-up, and a short fine-tune would be
    over before a second one."""
    distill = context.settings.distill
    if not distill.methods:
        return Alone(network, preprocessing)
    teacher, teacher_card = cards.load(context.inputs["train"])
    return Distillation(
        network,
        teacher,
        [one.model_copy(update={"warmup_epochs": 0.0}) for one in distill.methods],
        (preprocessing, teacher_card.preprocessing),
        label_weight=distill.label_weight,
        labels=torch.from_numpy(training.labels),
    )


def _identity(context: Context, job: Job) -> str:
    """What this fine-tune is: a checkpoint of another is not gone on from."""
    settings = context.settings
    counted = SimpleNamespace(
        seed=settings.seed,
        compute=settings.compute,
        data=settings.data,
        distill=settings.distill,
        own=settings.quantize.distill,
    )
    files = {name: hash_file(context.inputs[name] / cards.WEIGHTS) for name in ("train", "distill")}
    return f"{SECTION} {job.name} {identity_of(counted, int8=hash_file(job.int8), **files)}"


def _export(network: nn.Module, job: Job) -> None:
    """The fine-tuned student as the stage export writes it: same operator set, same names."""
    opset = next(entry.version for entry in onnx.load(job.graph).opset_import if entry.domain == "")
    exported = export_network(network, job.card, role="student", opset=opset, batch_max=BATCH_MAX)
    job.tuned.write_bytes(prove_graph(exported.model, job.card, role="student", opset=opset))


def _facts(recipe: RecipeSettings, outcome: loop.Outcome, bare: Folded, places: Places) -> dict[str, Any]:
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
        "normalisations": {"folded": bare.count, "left": list(bare.left)},
        "places": places.as_json(),
    }


@dataclass(frozen=True)
class _Telling:
    """Progress under the name of what is done: a stage may fine-tune for several recipes in turn."""

    progress: Any
    recipe: str

    def update(self, done: float, total: float, unit: str = "", **figures: float | str) -> None:
        self.progress.update(done, total, unit, quantization_aware=self.recipe, **figures)

    def note(self, text: str) -> None:
        self.progress.note(f"quantization-aware, recipe {self.recipe}: {text}")
