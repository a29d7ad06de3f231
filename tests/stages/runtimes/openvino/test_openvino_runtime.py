from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import MachineCannot, StageError
from pipeline.stage import Silent
from stages.bundle import predict
from stages.devices.there import sessions
from stages.runtimes import parity
from stages.runtimes.base import Source
from stages.runtimes.images import natural_images
from stages.runtimes.openvino.package import import_openvino
from stages.runtimes.openvino.runtime import RUNTIME, require_bf16
from stages.runtimes.openvino.session import OpenVinoSession
from stages.runtimes.settings import BuildSettings
from tests.errors import raises
from tests.stages.runtimes.networks import source_of

pytestmark = pytest.mark.long

pytest.importorskip("openvino")


def _built(source: Source, folder: Path) -> OpenVinoSession:
    folder.mkdir()
    RUNTIME.build(source, folder, BuildSettings(), Silent(), folder.parent)
    return RUNTIME.load(folder, source, 1)


@pytest.mark.parametrize("name", ["cnn", "mobilenet", "vit"])
def test_fp32_agrees_with_its_source_in_fp32(name: str, tmp_path: Path) -> None:
    source = source_of(name)
    session = _built(source, tmp_path / "built")
    assert parity.check(session, source, (1, 2, 7), name).relative < 1e-4
    assert session.facts == {"effective_precision": "fp32", "device": "CPU", "threads": 1}


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_int8_runs_in_integers(name: str, tmp_path: Path) -> None:
    source = source_of(name, "int8")
    session = _built(source, tmp_path / "built")
    assert session.facts["effective_precision"].startswith("int8+")
    integer, _, heavy = session.facts["integer_layers"].partition(" of ")
    assert int(integer) > 0
    assert int(integer) >= int(heavy) // 2
    assert parity.check(session, source, (1, 2, 7), name).relative < 1.0


def test_int8_decides_as_the_float_network_does(tmp_path: Path) -> None:
    session = _built(source_of("cnn", "int8"), tmp_path / "built")
    floats = source_of("cnn")
    images = natural_images(floats.image_shape, 64, seed=8)
    expected = parity.source_logits(floats.onnx, floats, images)
    assert (session.logits(images).argmax(1) == expected.argmax(1)).mean() > 0.8


def test_a_float_file_does_not_pass_for_int8(tmp_path: Path) -> None:
    session = _built(replace(source_of("cnn"), precision="int8"), tmp_path / "built")
    assert "int8" not in session.facts["effective_precision"]


def test_equal_work_gives_equal_bytes_without_a_path_of_this_machine(tmp_path: Path) -> None:
    source = source_of("cnn", "int8")
    for name in ("first", "second"):
        _built(source, tmp_path / name)
    for file in ("model.xml", "model.bin"):
        first = (tmp_path / "first" / file).read_bytes()
        assert first == (tmp_path / "second" / file).read_bytes()
        assert str(tmp_path).encode() not in first
        assert str(source.onnx.parent).encode() not in first


def test_weights_are_not_halved(tmp_path: Path) -> None:
    source = source_of("mobilenet")
    _built(source, tmp_path / "built")
    assert (tmp_path / "built" / "model.bin").stat().st_size > 0.8 * source.onnx.stat().st_size


def test_plain_graph_timed_calls_and_memory_mapped_images(tmp_path: Path) -> None:
    plain, whole = source_of("cnn", preprocessing=False), source_of("cnn")
    session = _built(plain, tmp_path / "built")
    images = natural_images(plain.image_shape, 4)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    expected = parity.source_logits(whole.onnx, whole, images)
    np.testing.assert_allclose(session.logits(mapped[:4]), expected, atol=1e-3)
    whole_session = _built(whole, tmp_path / "whole")
    np.testing.assert_allclose(whole_session.logits(mapped[:4]), expected, atol=1e-3)
    for call in [whole_session.timed(mapped[:batch]) for batch in (1, 3)] * 2:
        call()


def test_a_refused_file_is_a_stage_error(tmp_path: Path) -> None:
    file = tmp_path / "odd.onnx"
    file.write_bytes(b"not a model")
    with raises(StageError, what="refuses") as caught:
        _built(replace(source_of("cnn"), onnx=file), tmp_path / "built")
    assert str(tmp_path) not in str(caught.value)


def test_importing_openvino_sends_no_usage_event() -> None:
    code = (
        "import sys; from stages.runtimes.openvino.runtime import RUNTIME\n"
        "assert RUNTIME.ability_to_build().can\n"
        "assert 'openvino.tools.ovc' in sys.modules, 'the part that would send is loaded'\n"
        "print([n for n in sys.modules if n.startswith('openvino_telemetry') and sys.modules[n]])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


HAS_BF16 = "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="this processor does not compute bfloat16")


@needs_bf16
@pytest.mark.parametrize("name", ["cnn", "mobilenet", "vit"])
def test_bf16_is_read_back_from_what_was_compiled(name: str, tmp_path: Path) -> None:
    source = source_of(name, "bf16")
    session = _built(source, tmp_path / "built")
    assert session.facts["effective_precision"] == "bf16"
    short, _, heavy = session.facts["bf16_layers"].partition(" of ")
    assert int(short) == int(heavy) > 0
    agreement = parity.check(session, source, (1, 2, 7), name)
    assert 1e-4 < agreement.relative < 0.1, "rounded, and not by much"


@needs_bf16
def test_the_same_file_computes_in_the_precision_of_its_target(tmp_path: Path) -> None:
    rounded = _built(source_of("cnn", "bf16"), tmp_path / "bf16")
    exact = _built(source_of("cnn"), tmp_path / "fp32")
    assert (tmp_path / "bf16/model.bin").read_bytes() == (tmp_path / "fp32/model.bin").read_bytes()
    images = natural_images(source_of("cnn").image_shape, 8)
    assert not np.allclose(rounded.logits(images), exact.logits(images), atol=1e-4)


@pytest.mark.skipif(HAS_BF16, reason="this processor computes bfloat16")
def test_bf16_is_not_built_on_a_processor_without_it(tmp_path: Path) -> None:
    with raises(MachineCannot, what="bfloat16"):
        _built(source_of("cnn", "bf16"), tmp_path / "built")


def test_a_processor_without_bfloat16_is_told_in_a_sentence() -> None:
    require_bf16(["BF16", "FP32"])
    with raises(MachineCannot, what="does not compute bfloat16") as caught:
        require_bf16(["FP32", "INT8", "BIN"])
    assert "FP32, INT8, BIN" in caught.value.why
    assert "openvino-fp32" in caught.value.hint


@needs_bf16
def test_the_bundle_and_a_device_compute_in_bf16_too(tmp_path: Path) -> None:
    source = source_of("cnn", "bf16")
    images = natural_images(source.image_shape, 8)
    expected = _built(source, tmp_path / "openvino-bf16").logits(images)
    openvino = import_openvino()
    in_bundle = predict.run_openvino(openvino, tmp_path / "openvino-bf16", 1)(images)
    np.testing.assert_array_equal(in_bundle, expected)
    request = {
        **{"runtime": "openvino", "precision": "bf16", "onnx": None, "input": source.input},
        **{"image_shape": source.image_shape, "mean": source.mean, "std": source.std},
    }
    on_device = sessions.load(request, tmp_path / "openvino-bf16", 1).logits(images)
    np.testing.assert_array_equal(on_device, expected)
    exact = parity.source_logits(source.onnx, source, images)
    assert not np.allclose(in_bundle, exact, atol=1e-4)
