"""A small trained network that INT8 with one weight scale a layer ruins, and the stage's context for it.

Between two layers channels are scaled up and down in turn: the float network stays the same, but
beside the large channels' weights the small ones' are rounded away.
"""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn

from pipeline.stage import Context, Progress
from stages import export
from stages.models import card as cards
from stages.settings import profile_model
from tests.stages.onnx_files.trained import TINY, artefact, digits_settings, export_context, folder
from tests.stages.onnx_files.trained_files import Notes

COARSE = "kdpipe_test_coarse"

SPREAD = 60.0
"""A large channel's weights over a small one's."""


class _Layer(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, width, 3, padding=1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        activated: Tensor = self.act(self.norm(self.conv(images)))
        return activated


class _Coarse(nn.Module):
    def __init__(self, in_chans: int, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            _Layer(channels, width) for channels in (in_chans, width, width)
        )
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.third(self.second(self.first(images)))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits

    def get_classifier(self) -> nn.Linear:
        return self.head

    def unbalance(self) -> None:
        """ReLU lets a positive factor through, which the next layer's weights take back."""
        for layer, following in ((self.first, self.second), (self.second, self.third)):
            even = torch.arange(len(layer.norm.weight)) % 2 == 0
            factor = torch.where(even, SPREAD**0.5, SPREAD**-0.5)
            with torch.no_grad():
                layer.norm.weight.mul_(factor)
                layer.norm.bias.mul_(factor)
                following.conv.weight.div_(factor[None, :, None, None])


@register_model
def kdpipe_test_coarse(
    pretrained: bool = False, in_chans: int = 3, num_classes: int = 10, **_: Any
) -> _Coarse:
    return _Coarse(in_chans, num_classes)


@functools.cache
def student() -> Path:
    """An artefact like that of distill."""
    trained = artefact(COARSE, epochs=6)
    network, card = cards.load(trained)
    assert isinstance(network, _Coarse)
    network.unbalance()
    place = folder()
    cards.save(place, network, card)
    return place


@functools.cache
def exported() -> Path:
    output = folder()
    export.run(export_context(output, artefact(TINY), student()))
    return output


def context(
    *, target: str = "openvino-int8", work: Path | None = None, progress: Progress | None = None, **own: Any
) -> Context:
    """What the engine would hand to the stage quantize; `own` goes into `quantize.distill`."""
    profile = profile_model()(
        compute={"device": "cpu", "precision": "fp32", "threads": 1},
        data=digits_settings().model_dump(),
        teacher={"model": TINY},
        student={"model": COARSE},
        distill={"batch_size": 32, "learning_rate": 0.02, "methods": [{"name": "kd"}]},
        quantize={
            "images": 64,
            "holdout": 64,
            "method": "minmax",
            "per_channel": False,
            "sensitivity": "never",
            "agreement": 0.0,
            "distill": {"when": "always", **own},
        },
        targets=[target],
    )
    reads = ("seed", "compute", "data", "distill", "quantize", "targets")
    return Context(
        settings=SimpleNamespace(**{name: getattr(profile, name) for name in reads}),
        inputs={"train": artefact(TINY), "distill": student(), "export": exported()},
        output=folder(),
        work=work or folder(),
        progress=progress or Notes(),
    )
