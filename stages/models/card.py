"""A network on disk: its weights, and the card with the facts to rebuild it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import ModelError
from pipeline.json_files import write_json
from stages.data.preprocessing import Preprocessing
from stages.models import weights
from stages.models.borrowed import BorrowedHeadSpec, assemble
from stages.models.create import create
from stages.models.settings import ModelSettings

SCHEMA_VERSION = 1
WEIGHTS = "model.safetensors"
CARD = "model.json"


@dataclass(frozen=True)
class ModelCard:
    """The facts of `model.json` (docs/reference/artefacts.md).

    Attributes:
        role: `teacher`, `student` or `baseline`.
        model: The architecture's name, from the profile.
        options: Its options, from the profile.
        stem: Its stem, from the profile.
        classes: Class names, by label.
        parameters: The number of parameters.
        best_epoch: The epoch of these weights, from 1; 0: the starting weights.
        epochs: How many epochs were trained.
        val_top1: Validation top-1 of these weights, per cent; None if no epoch was trained.
        preprocessing: The preprocessing of the network's input.
        borrowed: The borrowed head of a SimKD student; None for other networks.
    """

    role: str
    model: str
    options: Mapping[str, Any]
    stem: str
    classes: tuple[str, ...]
    parameters: int
    best_epoch: int
    epochs: int
    val_top1: float | None
    preprocessing: Preprocessing
    borrowed: BorrowedHeadSpec | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the content of `model.json`."""
        facts = {
            "schema_version": SCHEMA_VERSION,
            "role": self.role,
            "model": self.model,
            "options": dict(self.options),
            "stem": self.stem,
            "classes": list(self.classes),
            "parameters": self.parameters,
            "best_epoch": self.best_epoch,
            "epochs": self.epochs,
            "val_top1": self.val_top1,
            "preprocessing": self.preprocessing.as_json(),
        }
        # The cards of other networks do not change: the key is optional.
        return facts if self.borrowed is None else {**facts, "borrowed": self.borrowed.as_json()}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> ModelCard:
        """Return the card that `as_json` wrote; keys that other stages added are ignored."""
        return cls(
            role=facts["role"],
            model=facts["model"],
            options=dict(facts["options"]),
            stem=facts["stem"],
            classes=tuple(facts["classes"]),
            parameters=facts["parameters"],
            best_epoch=facts["best_epoch"],
            epochs=facts["epochs"],
            val_top1=facts["val_top1"],
            preprocessing=Preprocessing.from_json(facts["preprocessing"]),
            borrowed=BorrowedHeadSpec.from_json(facts["borrowed"]) if "borrowed" in facts else None,
        )


def save(folder: Path, model: nn.Module, card: ModelCard) -> None:
    """Write `model.safetensors` and `model.json` into a folder.

    Floating-point tensors become float32 and contiguous, for any dtype, device and memory format. Equal
    weights give equal bytes.
    """
    state = {}
    for name, tensor in sorted(model.state_dict().items()):
        plain = tensor.detach().cpu()
        if plain.is_floating_point():
            plain = plain.float()
        # A clone: tied tensors share memory, and the format does not support that.
        state[name] = plain.clone(memory_format=torch.contiguous_format)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CARD, card.as_json())


def load(folder: Path) -> tuple[nn.Module, ModelCard]:
    """Load a network and its card.

    Returns:
        The network, in eval mode on the CPU; the card.

    Raises:
        ModelError: A file is missing or damaged, or the weights do not match the card's network.
    """
    card = read_card(folder)
    model = rebuild(card)
    file = folder / WEIGHTS
    weights.load_into(model, weights.read(file), where=str(file))
    return model.eval(), card


def read_card(folder: Path) -> ModelCard:
    """Read only the card.

    Raises:
        ModelError: The card is missing or damaged.
    """
    file = folder / CARD
    try:
        return ModelCard.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            "the model card cannot be read",
            where=str(file),
            why=f"{type(error).__name__}: {error}",
            hint="run the stage that wrote it again",
        ) from error


def rebuild(card: ModelCard) -> nn.Module:
    """Build the card's architecture with random weights, without changing the state of torch's generator."""
    settings = ModelSettings.model_validate(
        {"model": card.model, "options": dict(card.options), "stem": card.stem}
    )
    shape = {
        "classes": len(card.classes),
        "channels": card.preprocessing.channels,
        "image_size": card.preprocessing.side,
    }
    with torch.random.fork_rng(devices=[]):
        model = create(settings, **shape)
        return model if card.borrowed is None else assemble(model, card.borrowed, **shape)
