"""Small networks trained for seconds on the real digits, so that agreement means something."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from pipeline.stage import Context
from stages.data.load import DataSet, load
from stages.data.settings import DigitsSettings
from stages.models.card import ModelCard, save
from stages.models.create import create
from stages.models.settings import ModelSettings
from stages.settings import ExportSettings

RESNET = "test_resnet"
MOBILENET = "mobilenetv3_small_050"

_BATCH = 64


def digits_settings(image_size: int = 16) -> DigitsSettings:
    return DigitsSettings(name="digits", image_size=image_size, validation=0.2)


@functools.cache
def digits(image_size: int = 16) -> DataSet:
    return load(digits_settings(image_size))


def normalised(data: DataSet, indices: torch.Tensor, split: str = "train") -> torch.Tensor:
    images = torch.from_numpy(getattr(data, split).images.batch(indices.numpy()))
    mean, std = torch.tensor(data.preprocessing.mean), torch.tensor(data.preprocessing.std)
    return ((images.float() * data.preprocessing.scale - mean) / std).permute(0, 3, 1, 2)


def trained(
    model: str,
    *,
    epochs: int = 3,
    image_size: int = 16,
    stem: str = "small",
    options: tuple[tuple[str, Any], ...] = (),
) -> nn.Module:
    """The same network every time it is asked for; not to be changed by who asks."""
    folder = artefact(model, epochs=epochs, image_size=image_size, stem=stem, options=options)
    from stages.models.card import load as load_network

    return load_network(folder)[0]


@functools.cache
def artefact(
    model: str,
    *,
    epochs: int = 3,
    image_size: int = 16,
    stem: str = "small",
    options: tuple[tuple[str, Any], ...] = (),
    role: str = "student",
) -> Path:
    """A folder like the artefact of train or distill."""
    data = digits(image_size)
    settings = ModelSettings(model=model, stem=stem, options=dict(options))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = create(settings, classes=len(data.classes), channels=1, image_size=image_size)
        _fit(network, data, epochs)
    torch.set_num_threads(threads)
    card = ModelCard(
        role=role,
        model=model,
        options=dict(options),
        stem=stem,
        classes=data.classes,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        best_epoch=epochs,
        epochs=epochs,
        val_top1=None,
        preprocessing=data.preprocessing,
    )
    folder = Path(tempfile.mkdtemp(prefix="kdpipe-test-"))
    save(folder, network, card)
    return folder


def _fit(network: nn.Module, data: DataSet, epochs: int) -> None:
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    labels = torch.from_numpy(data.train.labels)
    steps = max(1, epochs * (len(labels) // _BATCH))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    network.train()
    for _ in range(epochs):
        order = torch.randperm(len(labels))
        for start in range(0, len(labels) - _BATCH + 1, _BATCH):
            indices = order[start : start + _BATCH]
            loss = nn.functional.cross_entropy(network(normalised(data, indices)), labels[indices])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()


def export_context(output: Path, teacher: Path, student: Path, **settings: Any) -> Context:
    """What the engine would hand to the stage export."""
    output.mkdir(parents=True, exist_ok=True)
    return Context(
        settings=SimpleNamespace(data=digits_settings(), export=ExportSettings(**settings)),
        inputs={"train": teacher, "distill": student},
        output=output,
        work=output.parent,
    )
