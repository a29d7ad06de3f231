"""Normalisations folded into convolutions, on networks of several families and real images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stages.models.create import create
from stages.models.features import Needs
from stages.models.observer import Observer
from stages.models.settings import ModelSettings
from stages.quantization_aware.folding import fold_normalisations
from tests.stages.onnx_files.trained import digits, normalised

NEEDS = Needs(ends=True, before_activation=True)


def images() -> Tensor:
    """float32 (6, 1, 64, 64): digits, enlarged so that deep networks keep a map."""
    return nn.functional.interpolate(normalised(digits(), torch.arange(6)), size=64)


def network(model: str) -> nn.Module:
    """With statistics of real images, and gains and offsets that are not those of the start."""
    torch.manual_seed(0)
    network = create(ModelSettings(model=model), classes=10, channels=1, image_size=64)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.3, 0.3)
    with torch.no_grad():
        network.train()(images())
    return network


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("mobilenetv3_small_050", 34),
        ("test_efficientnet", 13),
        ("test_resnet", 15),
        ("test_vit", 0),
        ("test_convnext", 0),
        ("convnext_atto", 0),
    ],
)
def test_a_folded_network_computes_the_same(model: str, count: int) -> None:
    original = network(model).eval()
    before = {name: value.clone() for name, value in original.state_dict().items()}
    folded = fold_normalisations(original, images())
    with torch.no_grad():
        expected, shown = original(images()), folded.network(images())
    assert (folded.count, folded.unfolded) == (count, ())
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.network.modules())
    torch.testing.assert_close(shown, expected, rtol=0.0, atol=1e-4 * float(expected.std()))
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())


@pytest.mark.parametrize("model", ["mobilenetv3_small_050", "test_resnet"])
def test_methods_see_the_same_features(model: str) -> None:
    """Maps before the activation, too: a folded BatchNormAct2d still holds its activation."""
    original = network(model).eval()
    with torch.no_grad():
        expected = Observer(original, NEEDS)(images())
        shown = Observer(fold_normalisations(original, images()).network, NEEDS)(images())
    assert expected.map_before is not None
    assert shown.map_before is not None
    torch.testing.assert_close(shown.map, expected.map, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(shown.map_before, expected.map_before, rtol=1e-3, atol=1e-3)
    for end, expected_end in zip(shown.ends_before, expected.ends_before, strict=True):
        torch.testing.assert_close(end, expected_end, rtol=1e-3, atol=1e-3)


class _ReadTwice(nn.Module):
    """The normalisation is given what the convolution leaves, and so is a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, shown: Tensor) -> Tensor:
        convolved = self.conv(shown)
        summed: torch.Tensor = convolved + self.norm(convolved)
        return summed.mean((2, 3))


class _NormFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, shown: Tensor) -> Tensor:
        return self.conv(self.norm(shown)).mean((2, 3))


@pytest.mark.parametrize("kind", [_ReadTwice, _NormFirst])
def test_what_cannot_be_folded_is_left_and_named(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    original = kind().train()
    original(images())
    folded = fold_normalisations(original.eval(), images())
    assert (folded.count, folded.unfolded) == (0, ("norm",))
    with torch.no_grad():
        torch.testing.assert_close(folded.network(images()), original(images()))
