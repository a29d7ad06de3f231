"""Two ONNX files: a planted fault is found at its very node, and what is healthy is said to be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from pipeline.errors import UsageError
from stages.debugging.pair import debug_pair
from stages.onnx_files.graphs import chunks, read_graph
from tests.errors import raises
from tests.stages.debugging import faults
from tests.stages.onnx_files.trained_files import exported, quantized

pytestmark = pytest.mark.long


def _step(
    suspect: Path, reference: Path, inputs: Path, output: Path, tolerance: float | None = None
) -> dict[str, Any]:
    (step,) = debug_pair(suspect, reference, [str(inputs)], tolerance, output)["steps"]
    found: dict[str, Any] = step
    return found


def test_equal_files_are_healthy_and_leave_nothing(tmp_path: Path) -> None:
    step = _step(faults.student(), faults.student(), faults.images(tmp_path), tmp_path / "case")
    assert step["status"] == "healthy"
    assert step["first"] is None
    assert step["compared"] == len(read_graph(faults.student()).values)
    assert not (tmp_path / "case").exists()


def test_one_changed_weight_is_found_at_its_node_with_a_case_that_shows_it(tmp_path: Path) -> None:
    suspect = tmp_path / "suspect.onnx"
    node = faults.changed(faults.student(), suspect, faults.other_weight)
    case = tmp_path / "case"
    step = _step(suspect, faults.student(), faults.images(tmp_path), case)
    assert step["first"]["node"] == node
    assert step["first"]["from_inputs"] == 0.0
    assert step["weights"] == [
        {"name": f"{node.removesuffix('/Conv')}.weight", "max_abs": pytest.approx(1.0)}
    ]
    assert [layer["node"] for layer in step["layers"]].index(node) == 4
    # The cut models give what was found and what was expected, by ONNX Runtime alone.
    for model, wanted in (("suspect.onnx", "found.npy"), ("reference.onnx", "expected.npy")):
        onnx.checker.check_model(str(case / model), full_check=True)
        assert len(onnx.load(case / model).graph.node) == 1
        session = onnxruntime.InferenceSession(str(case / model), providers=["CPUExecutionProvider"])
        given = {session.get_inputs()[0].name: np.load(case / "inputs" / "0.npy")}
        np.testing.assert_allclose(session.run(None, given)[0], np.load(case / wanted), rtol=1e-3, atol=1e-4)
    assert np.abs(np.load(case / "found.npy") - np.load(case / "expected.npy")).max() > 0.1
    again = _step(
        case / "suspect.onnx", case / "reference.onnx", case / "inputs" / "0.npy", tmp_path / "again"
    )
    assert again["first"]["node"] == node


def test_an_overflow_in_fp16_is_found_where_it_happens(tmp_path: Path) -> None:
    whole, half, given, node = faults.overflowing(tmp_path)
    step = _step(half, whole, given, tmp_path / "case", 0.05)
    first = step["first"]
    assert (first["node"], first["op"]) == (node, "Mul")
    assert first["not_finite"] > 0
    assert first["largest"] > 65504
    assert first["relative"] is None
    assert first["from_inputs"] < 0.05


def test_a_bad_scale_of_a_quantized_file_is_found_at_its_pair(tmp_path: Path) -> None:
    folder, _ = quantized(exported())
    suspect = tmp_path / "suspect.onnx"
    node = faults.changed(folder / "student.int8.signed.onnx", suspect, faults.bad_scale)
    inputs = faults.images(tmp_path)
    step = _step(suspect, faults.student(), inputs, tmp_path / "case", 0.5)
    assert (step["first"]["node"], step["first"]["op"]) == (node, "DequantizeLinear")
    kinds = [node.op_type for node in onnx.load(tmp_path / "case" / "suspect.onnx").graph.node]
    assert kinds == ["QuantizeLinear", "DequantizeLinear"]
    # The file as it was made is healthy, whichever the recipe: what quantizing changes on purpose heals.
    for recipe in ("x86", "signed"):
        sound = _step(
            folder / f"student.int8.{recipe}.onnx", faults.student(), inputs, tmp_path / recipe, 0.5
        )
        assert sound["status"] == "healthy", recipe


def test_a_difference_that_heals_is_counted_and_no_divergence(tmp_path: Path) -> None:
    suspect = tmp_path / "suspect.onnx"
    faults.changed(faults.student(), suspect, faults.healed)
    step = _step(suspect, faults.student(), faults.images(tmp_path), tmp_path / "case")
    assert step["status"] == "healthy"
    assert step["healed"] == 1


def test_intermediate_outputs_are_asked_for_in_few_runs() -> None:
    graph = read_graph(faults.student())
    pieces = list(chunks(graph, graph.values, 16))
    assert [name for piece in pieces for name in piece] == list(graph.values)
    assert len(pieces) < len(graph.values) / 20


def _text(folder: Path) -> tuple[Path, list[str]]:
    (folder / "text.onnx").write_text("no model")
    return folder / "text.onnx", [str(faults.images(folder))]


def _no_array(folder: Path) -> tuple[Path, list[str]]:
    return faults.student(), [str(folder / "missing.npy")]


def _other_name(folder: Path) -> tuple[Path, list[str]]:
    return faults.student(), [f"picture={faults.images(folder)}"]


def _other_shape(folder: Path) -> tuple[Path, list[str]]:
    np.save(folder / "flat.npy", np.zeros((2, 3), np.uint8))
    return faults.student(), [str(folder / "flat.npy")]


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (_text, "cannot be read"),
        (_no_array, "inputs cannot be read"),
        (_other_name, "has no such input"),
        (_other_shape, "does not run on these inputs"),
    ],
)
def test_what_does_not_fit_is_told(
    make: Callable[[Path], tuple[Path, list[str]]], what: str, tmp_path: Path
) -> None:
    suspect, inputs = make(tmp_path)
    with raises(UsageError, what=what) as caught:
        debug_pair(suspect, faults.student(), inputs, None, tmp_path / "case")
    assert caught.value.hint
    assert not (tmp_path / "case").exists()
