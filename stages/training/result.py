"""What a training leaves: the network with its card, its history, its figures."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import nn

from pipeline.stage import Progress
from stages.data.load import DataSet
from stages.models import card as cards
from stages.models.borrowed import BorrowedHead
from stages.models.network_input import network_preprocessing
from stages.models.settings import ModelSettings
from stages.training.fabric import Compute
from stages.training.loop import Outcome
from stages.training.settings import RecipeSettings


def write(
    folder: Path,
    network: nn.Module,
    role: str,
    model: ModelSettings,
    data: DataSet,
    recipe: RecipeSettings,
    outcome: Outcome,
) -> None:
    """`model.safetensors`, `model.json` and `history.csv` (docs/reference/artefacts.md) in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    card = cards.ModelCard(
        role=role,
        model=model.model,
        options=model.options,
        stem=model.stem,
        classes=tuple(data.classes),
        parameters=parameters(network),
        best_epoch=outcome.best_epoch,
        epochs=recipe.epochs,
        val_top1=round(outcome.val_top1, 4),
        preprocessing=network_preprocessing(model, data.preprocessing),
        borrowed=network.facts if isinstance(network, BorrowedHead) else None,
    )
    cards.save(folder, network, card)
    columns = list(outcome.history[0]) if outcome.history else _COLUMNS
    with (folder / "history.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(columns)
        rows.writerows([f"{row[name]:.7g}" for name in columns] for row in outcome.history)


def write_last(folder: Path, network: nn.Module, outcome: Outcome) -> None:
    """`last/` in `folder`: weights and card of the last epoch, beside those that `write` has kept.

    Leaves the last epoch's weights in `network`.
    """
    card = cards.read_card(folder)
    network.load_state_dict(outcome.last_weights)
    last = folder / "last"
    last.mkdir()
    val_top1 = round(outcome.last_val_top1, 4)
    cards.save(last, network, replace(card, best_epoch=card.epochs, val_top1=val_top1))


_COLUMNS = ["epoch", "learning_rate", "train_loss", "train_top1", "val_loss", "val_top1"]


def parameters(network: nn.Module) -> int:
    """Weights that learn, each tied one counted once."""
    return sum(parameter.numel() for parameter in network.parameters())


def metrics(outcome: Outcome, network: nn.Module, compute: Compute) -> dict[str, Any]:
    """JSON-ready figures of a training for the manifest; times are this process's."""
    return {
        "best_epoch": outcome.best_epoch,
        "val_top1": round(outcome.val_top1, 4),
        "last_val_top1": round(outcome.last_val_top1, 4),
        "parameters": parameters(network),
        "images_per_s": round(outcome.images_per_s, 1),
        "seconds_per_epoch": round(outcome.seconds_per_epoch, 3),
        "device": str(compute.device) if compute.devices == 1 else f"{compute.devices} x {compute.kind}",
        "precision": compute.precision,
        "bottleneck": outcome.bottleneck,
    }


def note_bottleneck(outcome: Outcome, progress: Progress, fabric: Fabric) -> None:
    """Names the switch to turn if the device has waited for images."""
    if outcome.bottleneck == "reading" and fabric.global_rank == 0:
        progress.note(
            "reading and decoding images holds the training up: raise data.workers, or "
            "data.memory_limit_gb so that the set is decoded once"
        )
