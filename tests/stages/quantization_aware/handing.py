"""A small trained network in which nodes hand their grid on, and one grid does the work of a ReLU6."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional

from stages import export
from tests.stages.onnx_files.trained import TINY, artefact, export_context, folder

HANDING = "kdpipe_test_handing"


class _Handing(nn.Module):
    """First a ReLU and a pooling that are no modules, then a split, then a ReLU6."""

    def __init__(self, in_chans: int, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_chans, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.act = nn.ReLU()
        self.left, self.right = (nn.Conv2d(width // 2, width, 3, padding=1) for _ in range(2))
        self.capped = nn.ReLU6()
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        pooled = functional.max_pool2d(functional.relu(self.first(images)), 2)
        left, right = self.act(self.second(pooled)).chunk(2, dim=1)
        features = self.capped(self.left(left)) + self.right(right)
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits

    def get_classifier(self) -> nn.Linear:
        return self.head


@register_model
def kdpipe_test_handing(
    pretrained: bool = False, in_chans: int = 3, num_classes: int = 10, **_: Any
) -> _Handing:
    return _Handing(in_chans, num_classes)


@functools.cache
def exported() -> Path:
    output = folder()
    export.run(export_context(output, artefact(TINY), artefact(HANDING)))
    return output
