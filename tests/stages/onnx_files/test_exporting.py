"""Exporting architectures of every family, and networks that cannot be exported."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from pipeline.errors import StageError
from stages.onnx_files.exporting import Exported, export_network
from stages.onnx_files.graph_proof import prove_graph
from stages.onnx_files.parity import measure_parity, parity_fault
from tests.errors import raises

pytestmark = pytest.mark.long

SIDE = 32


def _card(name: str, channels: int = 3) -> dict[str, Any]:
    return {
        "model": name,
        "classes": ["a", "b", "c", "d"],
        "input": "uint8_nhwc",
        "preprocessing": {
            "image_size": SIDE,
            "channels": channels,
            "scale": 1 / 255,
            "mean": [0.5, 0.4, 0.3][:channels],
            "std": [0.2, 0.25, 0.3][:channels],
        },
    }


def _export(network: nn.Module, opset: int = 20) -> Exported:
    return export_network(network, _card("made up"), role="student", opset=opset, batch_max=64)


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def _small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def _enliven(network: nn.Module) -> None:
    """Untrained networks have branches that zeros switch off: here every weight counts."""
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.4 / float(np.sqrt(parameter[0].numel())))
        else:
            nn.init.uniform_(parameter, 0.5, 1.0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("test_vit", {"img_size": SIDE, "patch_size": 8}, marks=pytest.mark.slow),
        pytest.param("test_convnext", {}, marks=pytest.mark.slow),
        ("MlpMixer", {"img_size": SIDE, "patch_size": 8, "num_blocks": 2, "embed_dim": 32}),
        pytest.param("test_resnet", {}, marks=pytest.mark.slow),
        pytest.param("test_efficientnet", {}, marks=pytest.mark.slow),
        pytest.param("test_byobnet", {}, marks=pytest.mark.slow),
        pytest.param("test_nfnet", {}, marks=pytest.mark.slow),
        pytest.param("test_maxvit", {"img_size": 64}, marks=pytest.mark.slow),
    ],
)
def test_every_family_is_exported_whole(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    side = options.get("img_size", SIDE)
    make = MlpMixer if name == "MlpMixer" else functools.partial(timm.create_model, name)
    network = make(num_classes=4, **options)
    _enliven(network)
    card = _card(name)
    card["preprocessing"]["image_size"] = side
    images = np.random.default_rng(0).integers(0, 256, (5, side, side, 3), dtype=np.uint8)
    exported = export_network(network, card, role="student", opset=20, batch_max=64)
    content = prove_graph(exported.model, card, role="student", opset=20)
    checks, rows = measure_parity(network, content, images, card, role="student")
    assert parity_fault(checks, rows, role="student", tolerance=1e-3, agreement=95.0) is None
    assert [check.batch for check in checks] == [1, 5]
    assert exported.unread == ()
    assert exported.graph_parameters == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    "opset", [18, 20, 23, *(pytest.param(n, marks=pytest.mark.slow) for n in (19, 21, 22))]
)
def test_every_operator_set_a_profile_may_ask_for(opset: int) -> None:
    network = _small()
    exported = _export(network, opset)
    content = prove_graph(exported.model, _card("small"), role="student", opset=opset)
    checks, rows = measure_parity(network, content, _images(5), _card("small"), role="student")
    assert parity_fault(checks, rows, role="student", tolerance=1e-3, agreement=95.0) is None
    assert onnx.load_from_string(content).ir_version == exported.model.ir_version


def test_a_folded_normalisation_is_counted_as_the_parameters_it_was() -> None:
    network = _small()
    exported = _export(network)
    assert not any(node.op_type == "BatchNormalization" for node in exported.model.graph.node)
    assert exported.graph_parameters == exported.network_parameters == 3 * 8 * 9 + 16 + 36


def test_tied_weights_count_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 3, 1)
            self.second = self.first
            self.head = nn.Linear(3, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.second(self.first(images)).mean((2, 3)))

    exported = _export(Tied())
    assert exported.graph_parameters == exported.network_parameters == 12 + 16
    assert exported.unread == ()


def test_a_network_that_branches_on_values_is_refused_with_the_innermost_cause(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 4)

        def forward(self, images: Tensor) -> Tensor:
            pooled = images.mean((2, 3))
            return self.head(pooled) if float(pooled.sum()) > 0 else self.head(-pooled)

    with raises(StageError, what="student made up cannot be exported") as caught:
        _export(Branching())
    assert "data-dependent" in caught.value.why
    assert "\n" not in caught.value.why
    assert capsys.readouterr().out == ""


def test_a_batch_fixed_in_the_code_is_found_out() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3 * SIDE * SIDE, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(images.reshape(2, -1))

    def export_and_prove() -> None:
        prove_graph(_export(Fixed()).model, _card("fixed"), role="student", opset=20)

    with raises(StageError, why="batch"):
        export_and_prove()


def test_weights_that_are_not_numbers_are_named() -> None:
    network = _small()
    with torch.no_grad():
        next(network.parameters())[0] = float("nan")
    with raises(StageError, what="not all finite") as caught:
        _export(network)
    assert "0.weight" in caught.value.where


def test_another_operator_set_than_asked_for_is_found_out() -> None:
    exported = _export(_small(), 20)
    with raises(StageError, what="another operator set"):
        prove_graph(exported.model, _card("small"), role="student", opset=21)


def test_a_file_that_computes_something_else_is_found_out() -> None:
    network, other = _small(), _small()
    content = prove_graph(_export(other).model, _card("small"), role="student", opset=20)
    with torch.no_grad():
        list(network.parameters())[-1][0] += 0.5
    checks, rows = measure_parity(network, content, _images(9), _card("small"), role="student")
    fault = parity_fault(checks, rows, role="student", tolerance=1e-3, agreement=95.0)
    assert fault is not None
    assert "does not compute what PyTorch computes" in fault.what
    assert "kdpipe debug PROFILE --model student" in fault.hint


def test_other_predictions_are_found_out_where_a_wide_tolerance_lets_the_logits_pass() -> None:
    network, other = _small(), _small()
    content = prove_graph(_export(other).model, _card("small"), role="student", opset=20)
    with torch.no_grad():
        list(network.parameters())[-1][0] += 50.0
    checks, rows = measure_parity(network, content, _images(9), _card("small"), role="student")
    fault = parity_fault(checks, rows, role="student", tolerance=1e9, agreement=95.0)
    assert fault is not None
    assert "predicts other classes" in fault.what
    assert "export.agreement" in fault.why
    assert parity_fault(checks, rows, role="student", tolerance=1e9, agreement=0.0) is None


def test_images_that_influence_one_another_are_found_out() -> None:
    """A network that takes the batch's mean off: right for each batch as a whole, wrong for a device."""

    class _Mixing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = _small()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = self.inner(images)
            return logits - logits.mean(dim=0, keepdim=True)

    network = _Mixing().eval()
    exported = export_network(network, _card("small"), role="student", opset=20, batch_max=64)
    content = prove_graph(exported.model, _card("small"), role="student", opset=20)
    checks, rows = measure_parity(network, content, _images(16), _card("small"), role="student")
    assert rows["batches"] == [1, 2, 7]
    fault = parity_fault(checks[1:], rows, role="student", tolerance=1e-3, agreement=95.0)
    assert fault is not None
    assert "other logits in another batch" in fault.what


def test_the_exporter_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    _export(_small())
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == ""
