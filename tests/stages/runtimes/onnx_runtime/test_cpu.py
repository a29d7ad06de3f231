from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from pipeline.errors import StageError
from pipeline.machine import usable_cores
from pipeline.stage import Silent
from stages.runtimes import parity
from stages.runtimes.base import Source
from stages.runtimes.images import as_input, natural_images
from stages.runtimes.onnx_runtime.cpu import RUNTIME
from stages.runtimes.settings import BuildSettings
from tests.errors import raises
from tests.stages.runtimes.networks import source_of
from tests.stages.runtimes.plugins import install_nothing_but

pytestmark = pytest.mark.long


def _build(source: Source, folder: Path, settings: BuildSettings | None = None) -> dict[str, object]:
    folder.mkdir()
    return RUNTIME.build(source, folder, settings or BuildSettings(), Silent(), folder.parent)


def _plain_run(file: Path, feed: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run(["logits"], {"input": feed})[0]
    return logits


@pytest.mark.parametrize("name", ["cnn", "mobilenet", "vit"])
def test_the_stored_optimisation_changes_no_bit_of_a_float_file(name: str, tmp_path: Path) -> None:
    source = source_of(name)
    _build(source, tmp_path / "built")
    session = RUNTIME.load(tmp_path / "built", source, 1)
    images = natural_images(source.image_shape, 5, seed=3)
    np.testing.assert_array_equal(session.logits(images), _plain_run(source.onnx, images))


@pytest.mark.parametrize("name", ["cnn", "mobilenet"])
def test_the_stored_optimisation_only_rounds_an_int8_file(name: str, tmp_path: Path) -> None:
    source = source_of(name, "int8", "x86")
    _build(source, tmp_path / "built")
    session = RUNTIME.load(tmp_path / "built", source, 1)
    assert parity.check(session, source, (1, 2, 7), name).relative < 0.1


@pytest.mark.parametrize("level", ["basic", "extended", "all"])
def test_every_level_agrees_with_the_source(level: str, tmp_path: Path) -> None:
    source = source_of("mobilenet")
    facts = _build(source, tmp_path / "built", BuildSettings(onnxruntime_optimization=level))
    assert facts["optimization"] == level
    session = RUNTIME.load(tmp_path / "built", source, 1)
    assert parity.check(session, source, (1, 2, 7), level).relative < 1e-5


def test_int8_runs_in_integers_and_says_so(tmp_path: Path) -> None:
    source = source_of("cnn", "int8", "x86")
    facts = _build(source, tmp_path / "built")
    assert facts["integer_operators"]
    session = RUNTIME.load(tmp_path / "built", source, 1)
    assert session.facts["effective_precision"] == "int8"
    # Whatever the kernels round: it still decides as the float network does.
    images = natural_images(source.image_shape, 64, seed=8)
    floats = _plain_run(source_of("cnn").onnx, images)
    assert (session.logits(images).argmax(1) == floats.argmax(1)).mean() > 0.8


def test_a_file_that_runs_in_floats_does_not_pass_for_int8(tmp_path: Path) -> None:
    notes: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    source = replace(source_of("cnn"), precision="int8")
    (tmp_path / "built").mkdir()
    RUNTIME.build(source, tmp_path / "built", BuildSettings(), Notes(), tmp_path)
    assert RUNTIME.load(tmp_path / "built", source, 1).facts["effective_precision"] == "fp32"
    assert "no operator" in notes[0]


def test_facts_state_provider_and_threads(tmp_path: Path) -> None:
    source = source_of("cnn")
    _build(source, tmp_path / "built")
    facts = RUNTIME.load(tmp_path / "built", source, 1).facts
    assert facts == {
        "effective_precision": "fp32",
        "provider": "CPUExecutionProvider",
        "threads": 1,
        "spinning": True,
    }
    assert RUNTIME.load(tmp_path / "built", source, usable_cores() + 1).facts["spinning"] is False


def test_equal_work_gives_equal_bytes_without_a_path_of_this_machine(tmp_path: Path) -> None:
    source = source_of("mobilenet")
    _build(source, tmp_path / "first")
    _build(source, tmp_path / "second")
    first, second = ((tmp_path / name / "model.onnx").read_bytes() for name in ("first", "second"))
    assert first == second
    assert str(tmp_path).encode() not in first
    assert str(source.onnx.parent).encode() not in first


def test_a_timed_call_runs_the_images_it_was_given(tmp_path: Path) -> None:
    source = source_of("cnn")
    _build(source, tmp_path / "built")
    session = RUNTIME.load(tmp_path / "built", source, 1)
    calls = [session.timed(natural_images(source.image_shape, batch)) for batch in (1, 3)]
    for call in (*calls, *calls):
        call()


def test_a_plain_graph_gets_normalised_images(tmp_path: Path) -> None:
    plain, whole = source_of("cnn", preprocessing=False), source_of("cnn")
    _build(plain, tmp_path / "built")
    images = natural_images(plain.image_shape, 4)
    assert as_input(images, plain).shape == (4, 3, 24, 24)
    session = RUNTIME.load(tmp_path / "built", plain, 1)
    np.testing.assert_allclose(session.logits(images), _plain_run(whole.onnx, images), atol=1e-4)
    session.timed(images)()


def test_a_refused_file_is_a_stage_error_with_the_runtimes_words(tmp_path: Path) -> None:
    node = onnx.helper.make_node("NoSuchOperator", ["input"], ["logits"], domain="my.domain")
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [info("input", onnx.TensorProto.FLOAT, ["batch", 3])],
        [info("logits", onnx.TensorProto.FLOAT, ["batch", 3])],
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("my.domain", 1)]
    file = tmp_path / "odd.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), str(file))
    with pytest.raises(StageError) as caught:
        _build(replace(source_of("cnn"), onnx=file), tmp_path / "built")
    assert "NoSuchOperator" in caught.value.why
    assert str(tmp_path) not in str(caught.value)


def test_a_damaged_file_is_a_stage_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with raises(StageError, what="cannot load"):
        RUNTIME.load(tmp_path, source_of("cnn"), 1)


@pytest.mark.parametrize("installed", ["onnxruntime", "onnxruntime-gpu"])
def test_a_bundle_pins_the_runtime_whichever_package_brought_it(
    installed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU package has the CPU's provider too, and a device for this target needs only the CPU's."""
    install_nothing_but(tmp_path, installed, "1.99.0")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert RUNTIME.ability_to_build().versions == {"onnxruntime": "1.99.0"}
