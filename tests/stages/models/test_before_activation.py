"""Maps before their final activation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stages.models.create import create
from stages.models.features import Features, Needs
from stages.models.observer import Observer
from stages.models.settings import ModelSettings

BOTH = Needs(ends=True, before_activation=True)

# Architecture, options, image size, and the final activation of the final map and of each stage end.
FINAL_ACTIVATIONS: list[tuple[str, dict[str, Any], int, list[str]]] = [
    ("resnet18", {}, 64, ["ReLU"] * 5),
    ("regnetx_002", {}, 64, ["ReLU"] * 5),
    ("mobilenetv2_050", {}, 64, ["ReLU6", "", "", "", ""]),
    ("efficientnet_b0", {}, 64, ["SiLU", "", "", "", ""]),
    ("mobilenetv3_small_050", {}, 64, ["Hardswish", "", "", "", "Hardswish"]),
    ("densenet121", {}, 64, ["ReLU", "", "", "", "ReLU"]),
    ("convnext_atto", {}, 64, [""] * 5),
    ("vit_tiny_patch16_224", {"depth": 6, "embed_dim": 48}, 64, [""] * 5),
    ("swin_tiny_patch4_window7_224", {"embed_dim": 24}, 64, [""] * 5),
    ("mixer_s32_224", {}, 64, [""] * 5),
    ("cifar_resnet8", {}, 32, ["ReLU"] * 4),
    ("cifar_wrn_16_2", {}, 32, ["ReLU", "", "", ""]),
    ("cifar_mobilenetv2_half", {}, 32, ["ReLU", "", "", "", ""]),
    ("cifar_vgg8", {}, 32, ["ReLU"] * 5),
]


def network_of(model: str, size: int, options: dict[str, Any] | None = None) -> nn.Module:
    torch.manual_seed(0)
    settings = ModelSettings(model=model, options=options or {})
    network = create(settings, classes=5, channels=3, image_size=size)
    # Like after training: initially the last norms of residual branches return zero.
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, 0.3)
            nn.init.normal_(part.bias, 0.0, 0.3)
    return network


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def pairs(features: Features) -> list[tuple[Tensor, Tensor]]:
    """Return (map before its activation, map) of the final map and of each end."""
    assert features.map_before is not None
    return [
        (features.map_before, features.map),
        *zip(features.ends_before, features.ends, strict=True),
    ]


ACTIVATIONS = {"ReLU": nn.ReLU(), "ReLU6": nn.ReLU6(), "SiLU": nn.SiLU(), "Hardswish": nn.Hardswish()}


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "options", "size", "activations"),
    FINAL_ACTIVATIONS,
    ids=[case[0] for case in FINAL_ACTIVATIONS],
)
def test_the_activation_of_the_recorded_input_is_the_map(
    model: str, options: dict[str, Any], size: int, activations: list[str]
) -> None:
    network = network_of(model, size, options).eval()
    with torch.no_grad():
        features = Observer(network, BOTH)(images(size))
        plain = Observer(network, Needs(ends=True))(images(size))
    assert torch.equal(features.logits, plain.logits)
    for end, expected in zip(features.ends, plain.ends, strict=True):
        assert torch.equal(end, expected)
    maps = pairs(features)
    assert len(maps) == len(activations)
    for (before, after), name in zip(maps, activations, strict=True):
        if name:
            assert not torch.equal(before, after)
            assert torch.equal(ACTIVATIONS[name](before), after)
        else:
            assert before is after
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


@pytest.mark.long
@pytest.mark.parametrize("model", ["resnet18", "mobilenetv2_050"])
def test_activations_in_place_do_not_overwrite_it(model: str) -> None:
    network = network_of(model, 64).train()
    in_place = [part for part in network.modules() if getattr(part, "inplace", False)]
    assert in_place
    features = Observer(network, BOTH)(images(64, 4))
    assert features.map_before is not None
    assert features.map_before.min() < 0
    assert features.map.min() == 0
    # The gradient of the map before its activation is not cut where the activation is.
    features.map_before.sum().backward()
    for part in in_place:
        part.inplace = False  # type: ignore[assignment]
    torch.manual_seed(0)
    other = network_of(model, 64).train()
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        network.eval()
        other.eval()
        first = Observer(network, BOTH)(images(64))
        second = Observer(other, BOTH)(images(64))
    for (before, after), (expected, expected_after) in zip(pairs(first), pairs(second), strict=True):
        assert torch.equal(before, expected)
        assert torch.equal(after, expected_after)


def test_a_sum_in_place_after_the_activation_is_not_ended_by_it() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            out = self.relu(x * 2)
            out += x
            return out

    network = Small(Block()).eval()
    features = Observer(network, Needs(before_activation=True))(images(8))
    assert features.map_before is features.map


def test_the_last_of_several_calls_of_one_layer_counts() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.relu(x) - 0.5)

    network = Small(Block()).eval()
    features = Observer(network, Needs(before_activation=True))(images(8))
    assert features.map_before is not None
    assert features.map_before.min() == -0.5
    assert torch.equal(features.map_before.relu(), features.map)


class Small(nn.Module):
    """A block, a pooling and a classifier."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.block(x)).flatten(1))


def test_the_shapes_do_not_change() -> None:
    network = network_of("resnet18", 64)
    assert Observer(network, BOTH).spec(64, 3) == Observer(network, Needs(ends=True)).spec(64, 3)


def test_before_and_altered_together() -> None:
    observer = Observer(network_of("resnet18", 64).eval(), BOTH)
    with torch.no_grad():
        plain = observer(images(64))
        again = observer.altered(images(64), {1: lambda shown: shown * 2})
    assert torch.equal(again.ends_before[1], plain.ends_before[1])
    assert torch.equal(again.ends[1], plain.ends[1] * 2)
    assert not torch.equal(again.ends_before[2], plain.ends_before[2])
    assert torch.equal(again.ends_before[2].relu(), again.ends[2])


@pytest.mark.long
def test_in_half_precision_with_gradients() -> None:
    network = network_of("resnet18", 64).train()
    with torch.autocast("cpu", torch.bfloat16):
        features = Observer(network, BOTH)(images(64))
    (sum(before.float().sum() for before, _ in pairs(features)) + features.logits.float().sum()).backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
