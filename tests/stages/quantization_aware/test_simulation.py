"""The simulated network, against the very INT8 file that it simulates, run node by node."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from stages import quantize
from stages.models import card as cards
from stages.onnx_files.metadata import feed
from stages.onnx_files.quantizing import RECIPES, prepare, quantized
from stages.onnx_files.ranges import Method, find_ranges, float_activations
from stages.onnx_files.sessions import open_session
from stages.quantization_aware.folding import fold_normalisations
from stages.quantization_aware.recovery import with_learned_ranges
from stages.quantization_aware.rounded_file import RoundedFile, read_rounding
from stages.quantization_aware.rounding_places import RoundingPlaces, find_rounding_places
from stages.quantization_aware.simulation import ROUNDINGS, simulate
from tests.stages.onnx_files.trained import (
    MOBILENET,
    TINY,
    artefact,
    digits,
    export_context,
    folder,
    normalised,
)
from tests.stages.onnx_files.trained_files import exported, exported_cnn, quantize_context
from tests.stages.quantization_aware import handing

pytestmark = pytest.mark.long

LOOKED_AT = 4


@functools.cache
def _vit() -> Path:
    from stages import export

    output = folder()
    export.run(export_context(output, artefact(TINY), artefact("test_vit", epochs=1)))
    return output


NETWORKS = {
    "mobilenet": (MOBILENET, exported),
    "cnn": (TINY, exported_cnn),
}


@functools.cache
def _quantized(source: Path) -> Path:
    context = quantize_context(source, distill={"when": "never"})
    quantize.run(context)
    return context.output


def _simulation_inputs(
    model: str, source: Path, recipe: str
) -> tuple[nn.Module, RoundedFile, RoundingPlaces, Path]:
    """The folded network, what the INT8 file rounds, where that is in the network, and the file."""
    network, _ = cards.load(artefact(model) if model != "test_vit" else artefact(model, epochs=1))
    file = _quantized(source) / f"student.int8.{recipe}.onnx"
    images = normalised(digits(), torch.arange(LOOKED_AT))
    bare = fold_normalisations(network, images).network
    shown = feed(digits().train.images.batch(np.arange(LOOKED_AT)), _card(source))
    rounded = read_rounding(onnx.load(file))
    places = find_rounding_places(bare, rounded, prepare(onnx.load(source / "student.onnx")), shown, images)
    return bare, rounded, places, file


def _card(source: Path) -> dict[str, object]:
    card: dict[str, object] = json.loads((source / "student.json").read_text(encoding="utf-8"))
    return card


def _logits(network: nn.Module) -> np.ndarray:
    with torch.no_grad():
        answers: Tensor = network(normalised(digits(), torch.arange(len(digits().test)), "test"))
    return answers.numpy()


@pytest.mark.parametrize("network", list(NETWORKS))
@pytest.mark.parametrize("recipe", ["x86", "signed"])
def test_simulated_logits_are_those_of_the_file(network: str, recipe: str) -> None:
    model, source = NETWORKS[network]
    bare, rounded, places, file = _simulation_inputs(model, source(), recipe)
    assert places.absent_activations == ()
    assert places.absent_weights == ()
    before = _logits(bare)
    simulation = simulate(bare, rounded, places, learn_ranges=True)
    simulated = _logits(bare)
    shown = feed(digits().test.images.batch(np.arange(len(digits().test))), _card(source()))
    (expected,) = open_session(file, optimise=False).run(["logits"], {"input": shown})
    off, rounding = (np.sqrt(np.mean((logits - expected) ** 2)) for logits in (simulated, before))
    assert off < 0.1 * expected.std()
    # The float network is further from the file than the simulated one. By how much, 0.2 to 0.6 times,
    # depends on the processor: its kernels, and the weights that training gives on it.
    assert off < 0.8 * rounding
    assert (simulated.argmax(1) == expected.argmax(1)).mean() > 0.98
    simulation.remove()
    assert np.array_equal(_logits(bare), before)
    assert not any("parametrizations" in name for name, _ in bare.named_modules())


def test_ranges_as_they_start_are_those_of_the_file() -> None:
    bare, rounded, places, _ = _simulation_inputs(TINY, exported_cnn(), "x86")
    ranges = simulate(bare, rounded, places, learn_ranges=True).ranges()
    assert set(ranges) == set(rounded.grids)
    for name, (low, high) in ranges.items():
        grid = rounded.grids[name]
        assert high - low == pytest.approx(255 * grid.scale, rel=1e-5)
        assert -low / grid.scale == pytest.approx(grid.zero_point, abs=1e-3)


def test_what_a_node_hands_on_is_rounded_by_one_grid() -> None:
    """Max pooling leaves whole steps as they are, so that its file has one scale before and after it."""
    bare, rounded, places, _ = _simulation_inputs(TINY, exported_cnn(), "x86")
    roundings = simulate(bare, rounded, places, learn_ranges=True).roundings
    assert rounded.forwarded_from == {"pool/MaxPool": "act/Relu"}
    assert roundings["pool/MaxPool"] is roundings["act/Relu"]


@pytest.mark.parametrize("recipe", ["x86", "signed"])
def test_every_part_of_a_split_is_rounded_by_one_grid(recipe: str) -> None:
    bare, rounded, places, _ = _simulation_inputs(handing.HANDING, handing.exported(), recipe)
    roundings = simulate(bare, rounded, places, learn_ranges=True).roundings
    assert roundings["Split"] is roundings["Split:out1"] is roundings["act/Relu"]


@pytest.mark.parametrize("recipe", ["x86", "signed"])
def test_what_was_learned_is_what_the_file_rounds_by(recipe: str) -> None:
    """Also behind a ReLU that is no module, whose grid the pooling behind it is handed."""
    source = handing.exported()
    bare, rounded, places, _ = _simulation_inputs(handing.HANDING, source, recipe)
    simulation = simulate(bare, rounded, places, learn_ranges=True)
    with torch.no_grad():
        for parameter in simulation.network.get_submodule(ROUNDINGS).parameters():
            parameter.mul_(1.1)
    graph = prepare(onnx.load(source / "student.onnx"))
    images, method = digits().train.images.batch(np.arange(LOOKED_AT)), Method("minmax")
    tensors = float_activations(graph, RECIPES[recipe].op_types, set())
    ranges = find_ranges(graph, tensors, lambda: [feed(images, _card(source))], [method])[method]
    again = quantized(
        graph,
        with_learned_ranges(ranges, simulation.ranges()),
        RECIPES[recipe],
        per_channel=True,
        skipped=set(),
        card=_card(source),
    )
    grids = read_rounding(again).grids
    for name, rounding in simulation.roundings.items():
        assert grids[name].scale == pytest.approx(float(rounding.log_scale.detach().exp()), rel=1e-5), name
        assert name in places.capped or grids[name].scale != pytest.approx(rounded.grids[name].scale)


def test_a_grid_that_does_the_work_of_a_cap_is_not_learned() -> None:
    """The x86 file has no node for ReLU6; its signed one has."""
    cases = {
        recipe: _simulation_inputs(handing.HANDING, handing.exported(), recipe)
        for recipe in ("x86", "signed")
    }
    assert {recipe: places.capped for recipe, (_, _, places, _) in cases.items()} == {
        "x86": {"capped/Clip"},
        "signed": set(),
    }
    bare, rounded, places, _ = cases["x86"]
    roundings = simulate(bare, rounded, places, learn_ranges=True).roundings
    assert list(roundings["capped/Clip"].parameters()) == []
    assert list(roundings["right/Conv"].parameters()) != []


@pytest.mark.parametrize("recipe", ["x86", "signed"])
def test_products_of_attention_are_counted_as_not_simulated(recipe: str) -> None:
    bare, rounded, places, _ = _simulation_inputs("test_vit", _vit(), recipe)
    facts = places.as_json()
    assert facts["weights_not_simulated"] == []
    assert facts["weights"] == len(rounded.weights) > 20
    assert facts["activations"] > 20
    assert any("attn" in name for name in facts["activations_not_simulated"])
    assert facts["activations"] + len(facts["activations_not_simulated"]) == len(rounded.grids)
    simulate(bare, rounded, places, learn_ranges=False)
    assert np.isfinite(_logits(bare)).all()


def test_weights_that_are_made_anew_in_every_pass_are_not_simulated() -> None:
    """Rounding what a standardised weight is made from is another thing than rounding the weight."""
    bare, rounded, _, _ = _simulation_inputs(TINY, exported_cnn(), "signed")
    changed = bare.get_submodule("first.0")
    assert isinstance(changed, nn.Conv2d)
    with torch.no_grad():
        changed.weight.mul_(1.2)
    images = normalised(digits(), torch.arange(LOOKED_AT))
    shown = feed(digits().train.images.batch(np.arange(LOOKED_AT)), _card(exported_cnn()))
    graph = prepare(onnx.load(exported_cnn() / "student.onnx"))
    places = find_rounding_places(bare, rounded, graph, shown, images)
    assert places.absent_weights == ("first.0/Conv",)
