"""Small networks trained for seconds on the real digits, so that agreement means something."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from timm.models import register_model
from torch import Tensor, nn

from pipeline.stage import Context
from stages.data.load import DataSet, load
from stages.data.settings import DigitsSettings
from stages.models.card import ModelCard, save
from stages.models.create import create
from stages.models.settings import ModelSettings
from stages.onnx_files.settings import ExportSettings

MOBILENET = "mobilenetv3_small_050"
TINY = "kdpipe_test_tiny"
BRANCHY = "kdpipe_test_branchy"
SILENT = "kdpipe_test_silent"

_BATCH = 64


class _Tiny(nn.Module):
    """A residual network of two blocks, small enough to be exported in a second."""

    def __init__(self, in_chans: int = 3, num_classes: int = 10, width: int = 24) -> None:
        super().__init__()
        self.stem = _conv(in_chans, width)
        self.pool = nn.MaxPool2d(2)
        self.first = _conv(width, width)
        self.second = _conv(width, width)
        self.act = nn.ReLU()
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        found = self.pool(self.act(self.stem(images)))
        found = self.act(found + self.first(found))
        found = self.act(found + self.second(found))
        return self.head(found.mean((2, 3)))

    def get_classifier(self) -> nn.Linear:
        return self.head


def _conv(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))


@register_model
def kdpipe_test_tiny(pretrained: bool = False, in_chans: int = 3, num_classes: int = 10, **_: Any) -> _Tiny:
    return _Tiny(in_chans, num_classes)


@register_model
def kdpipe_test_branchy(
    pretrained: bool = False, in_chans: int = 3, num_classes: int = 10, **_: Any
) -> _Tiny:
    """It carries a projector which its logits do not depend on."""
    network = _Tiny(in_chans, num_classes)
    network.projector = nn.Linear(8, 5)
    return network


@register_model
def kdpipe_test_silent(pretrained: bool = False, in_chans: int = 3, num_classes: int = 10, **_: Any) -> _Tiny:
    """It starts with a head of zeros."""
    network = _Tiny(in_chans, num_classes)
    nn.init.zeros_(network.head.weight)
    return network


_SESSION = tempfile.TemporaryDirectory(prefix="kdpipe-test-onnx-")


def folder() -> Path:
    """An empty folder that goes with the session."""
    return Path(tempfile.mkdtemp(dir=_SESSION.name))


def digits_settings() -> DigitsSettings:
    return DigitsSettings(name="digits", image_size=16, validation=0.2)


@functools.cache
def digits() -> DataSet:
    return load(digits_settings())


def normalised(data: DataSet, indices: torch.Tensor, split: str = "train") -> torch.Tensor:
    images = torch.from_numpy(getattr(data, split).images.batch(indices.numpy()))
    mean, std = torch.tensor(data.preprocessing.mean), torch.tensor(data.preprocessing.std)
    return ((images.float() * data.preprocessing.scale - mean) / std).permute(0, 3, 1, 2)


def artefact(model: str, **said: Any) -> Path:
    """A folder like the artefact of train or distill, made once a session."""
    return _artefact(model, **{"epochs": 3, "stem": "small" if model == MOBILENET else "standard", **said})


@functools.cache
def _artefact(
    model: str,
    *,
    epochs: int,
    stem: Literal["standard", "small"],
) -> Path:
    data = digits()
    settings = ModelSettings(model=model, stem=stem)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = create(settings, classes=len(data.classes), channels=1, image_size=16)
        _fit(network, data, epochs)
    torch.set_num_threads(threads)
    card = ModelCard(
        role="student",
        model=model,
        options={},
        stem=stem,
        classes=data.classes,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        best_epoch=epochs,
        epochs=epochs,
        val_top1=None,
        preprocessing=data.preprocessing,
    )
    place = folder()
    save(place, network, card)
    return place


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
