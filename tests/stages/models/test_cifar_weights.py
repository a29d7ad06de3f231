"""Published weights, read by the key `checkpoint`, reach their published accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from stages.models.create import check, create
from stages.models.settings import ModelSettings
from tests.shared_data import cifar_test_set, shared

PAD = {"shortcut": "pad"}

# File, architecture, options; parameters and test top-1 in per cent as published with the weights.
TRAINED: list[Any] = [
    ("cifar10_resnet20", "cifar_resnet20", PAD, 269_722, 91.73),
    pytest.param("cifar10_resnet32", "cifar_resnet32", PAD, 464_154, 92.63, marks=pytest.mark.slow),
    pytest.param("cifar10_resnet44", "cifar_resnet44", PAD, 658_586, 93.10, marks=pytest.mark.slow),
    pytest.param("cifar10_resnet56", "cifar_resnet56", PAD, 853_018, 93.39, marks=pytest.mark.slow),
    pytest.param("cifar100_resnet56", "cifar_resnet56", {}, 861_620, 72.63, marks=pytest.mark.slow),
]


@pytest.mark.long
@pytest.mark.parametrize(("file", "model", "options", "parameters", "published"), TRAINED)
def test_published_weights_reach_their_published_accuracy(
    file: str, model: str, options: dict[str, str], parameters: int, published: float
) -> None:
    path = shared(f"weights/{file}.safetensors")
    images, labels = cifar_test_set(file.partition("_")[0])
    classes = int(labels.max()) + 1
    settings = ModelSettings(model=model, options=options, checkpoint=str(path))
    check(settings, classes=classes, channels=3, image_size=32)
    network = create(settings, classes=classes, channels=3, image_size=32).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    with safe_open(path, framework="np") as opened:
        metadata = opened.metadata()
    correct = _correct_count(network, images, labels, metadata["mean"], metadata["std"])
    print(f"{file}: {correct} of {len(labels)} correct")
    # One image is 0.01 points: a prediction that depends on the last bit can differ between machines.
    assert abs(100.0 * correct / len(labels) - published) <= 0.015


def _correct_count(
    network: torch.nn.Module, images: np.ndarray, labels: np.ndarray, mean: str, std: str
) -> int:
    offset, gain = (torch.tensor([float(value) for value in text.split(",")]) for text in (mean, std))
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(images), 500):
            batch = torch.from_numpy(images[start : start + 500]).float() / 255.0
            logits = network(((batch - offset) / gain).permute(0, 3, 1, 2))
            correct += int((logits.argmax(1).numpy() == labels[start : start + 500]).sum())
    return correct
