"""The stage export, on networks that were really trained."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from pipeline.errors import StageError
from pipeline.stage import Context
from stages import export
from stages.models.card import load as load_network
from stages.onnx_files.metadata import feed, read_metadata
from tests.errors import raises
from tests.stages.onnx_files.trained import BRANCHY, MOBILENET, SILENT, TINY, artefact, digits, export_context
from tests.stages.onnx_files.trained_files import Notes, exported

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]


def _session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _card(folder: Path, role: str) -> dict[str, object]:
    card: dict[str, object] = json.loads((folder / f"{role}.json").read_text())
    return card


def test_leaves_the_files_of_the_contract() -> None:
    names = sorted(path.name for path in exported().iterdir())
    assert names == [
        "images.npy",
        "parity.json",
        "student.json",
        "student.onnx",
        "teacher.json",
        "teacher.onnx",
    ]
    images = np.load(exported() / "images.npy")
    assert (images.dtype, images.shape) == (np.uint8, (64, 16, 16, 1))
    card = _card(exported(), "student")
    model = json.loads((artefact(MOBILENET) / "model.json").read_text())
    assert card == {**model, "input": "uint8_nhwc"}


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_the_graph_is_what_was_asked_for(role: str) -> None:
    model = onnx.load(exported() / f"{role}.onnx")
    onnx.checker.check_model(model, full_check=True)
    (given,) = model.graph.input
    assert given.name == "input"
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert _dims(given) == ["batch", 16, 16, 1]
    assert [(out.name, _dims(out)) for out in model.graph.output] == [
        ("logits", ["batch", 10]),
        ("probabilities", ["batch", 10]),
    ]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_the_file_says_what_the_card_says() -> None:
    card = _card(exported(), "student")
    assert read_metadata(onnx.load(exported() / "student.onnx")) == {
        field: card[field] for field in ("classes", "preprocessing", "input")
    }


@pytest.mark.parametrize("batch", [1, 2, 7, 33])
def test_logits_are_the_network_s_and_probabilities_sum_to_one(batch: int) -> None:
    data = digits()
    images = data.test.images.batch(np.arange(batch))
    network, _ = load_network(artefact(MOBILENET))
    card = {**_card(exported(), "student"), "input": "float32_nchw"}
    with torch.inference_mode():
        reference = network(torch.from_numpy(feed(images, card))).numpy()
    logits, probabilities = _session(exported() / "student.onnx").run(None, {"input": images})
    assert logits.dtype == probabilities.dtype == np.float32
    assert np.abs(logits - reference).max() < 1e-3 * reference.std()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)
    assert (probabilities.argmax(axis=1) == logits.argmax(axis=1)).all()


def test_parity_is_told_at_batch_1_and_at_a_larger_one() -> None:
    report = json.loads((exported() / "parity.json").read_text())
    assert report["schema_version"] == 1
    assert report["tolerance"] == 1e-3
    for role in ("teacher", "student"):
        first, second = report[role]["checks"]
        assert (first["batch"], second["batch"], second["images"]) == (1, 64, 64)
        for check in (first, second):
            assert 0 < check["max_relative_to_std"] < 1e-3
            assert check["top1_agreement"] == 100.0
            assert check["reference_spread"] > 0.1
        rows = report[role]["row_by_row"]
        assert (rows["batches"], rows["images"]) == ([1, 2, 7], 14)
        assert rows["max_relative_to_std"] < 1e-3
        assert report[role]["passed"]
        network, _ = load_network(artefact(TINY if role == "teacher" else MOBILENET))
        counted = sum(parameter.numel() for parameter in network.parameters())
        assert report[role]["parameters_graph"] == report[role]["parameters_network"] == counted


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_nothing_of_this_machine_is_in_the_file(role: str) -> None:
    content = (exported() / f"{role}.onnx").read_bytes()
    places = [str(ROOT), str(Path.home()), sys.prefix, sysconfig.get_paths()["purelib"], str(Path.cwd())]
    for place in places:
        if len(place) > 1:
            assert place.encode() not in content
    model = onnx.load_from_string(content)
    told = onnx.load_from_string(content)
    for weight in told.graph.initializer:  # whose bytes may spell anything
        weight.ClearField("raw_data")
    words = told.SerializeToString()
    assert not re.search(rb"\.py\b|site-packages|stack_trace|/usr/|/tmp/|/home/", words)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert {entry.key for entry in model.metadata_props} == {
        "kdpipe.classes",
        "kdpipe.input",
        "kdpipe.preprocessing",
    }


def test_nodes_are_named_after_the_modules() -> None:
    names = [node.name for node in onnx.load(exported() / "student.onnx").graph.node]
    assert len(set(names)) == len(names)
    assert {"preprocessing/Cast", "conv_stem/Conv", "blocks.0.0.conv_dw/Conv", "classifier/Gemm"} <= set(
        names
    )


def test_equal_weights_give_equal_bytes_in_another_process(tmp_path: Path) -> None:
    """Another order of hashing, another history of exports."""
    program = (
        "import json, sys; from pathlib import Path\n"
        "import tests.stages.onnx_files.trained\n"
        "from stages.models.card import load\n"
        "from stages.onnx_files.exporting import export_network, serialised\n"
        "folder = Path(sys.argv[1])\n"
        "card = {**json.loads((folder / 'model.json').read_text()), 'input': 'uint8_nhwc'}\n"
        "exported = export_network(load(folder)[0], card, role='teacher', opset=20, batch_max=1024)\n"
        "Path(sys.argv[2]).write_bytes(serialised(exported.model))\n"
    )
    again = tmp_path / "again.onnx"
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-c", program, str(artefact(TINY)), str(again)],
        check=True,
        cwd=ROOT,
        env=environment,
    )
    assert again.read_bytes() == (exported() / "teacher.onnx").read_bytes()


def test_the_plain_graph_takes_normalised_images_and_gives_logits_alone() -> None:
    plain = exported(preprocessing=False)
    model = onnx.load(plain / "teacher.onnx")
    (given,) = model.graph.input
    assert given.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert _dims(given) == ["batch", 1, 16, 16]
    assert [out.name for out in model.graph.output] == ["logits"]
    card = _card(plain, "teacher")
    assert card["input"] == "float32_nchw"
    images = digits().test.images.batch(np.arange(9))
    (found,) = _session(plain / "teacher.onnx").run(["logits"], {"input": feed(images, card)})
    (whole,) = _session(exported() / "teacher.onnx").run(["logits"], {"input": images})
    np.testing.assert_allclose(found, whole, atol=1e-4)


def test_beyond_the_tolerance_nothing_is_written(tmp_path: Path) -> None:
    context = export_context(tmp_path / "out", artefact(TINY), artefact(TINY), tolerance=1e-12)
    with raises(StageError, what="does not compute what PyTorch computes") as caught:
        export.run(context)
    assert re.search(r"off by \S+, \S+ of the logits' standard deviation", caught.value.why)
    assert "predictions agree" in caught.value.why
    assert list(context.output.iterdir()) == []


def test_without_proofs_the_files_are_written_and_the_failure_is_noted(tmp_path: Path) -> None:
    notes = Notes()
    context = export_context(tmp_path / "out", artefact(TINY), artefact(TINY), tolerance=1e-12, prove=False)
    export.run(_with(context, notes))
    report = json.loads((context.output / "parity.json").read_text())
    assert not report["student"]["passed"]
    assert any("does not compute what PyTorch computes" in note for note in notes.notes)
    assert (context.output / "student.onnx").is_file()


def test_a_network_that_says_the_same_of_every_image_proves_nothing(tmp_path: Path) -> None:
    silent = artefact(SILENT, epochs=0)
    context = export_context(tmp_path / "out", artefact(TINY), silent)
    with raises(StageError, what="same logits for every image") as caught:
        export.run(context)
    assert "untrained" in caught.value.why
    assert list(context.output.iterdir()) == []


def test_a_student_with_a_branch_beside_its_network_is_refused(tmp_path: Path) -> None:
    branchy = artefact(BRANCHY, epochs=1)
    context = export_context(tmp_path / "out", artefact(TINY), branchy)
    with raises(StageError, what="do not depend on") as caught:
        export.run(context)
    assert "45 of" in caught.value.why
    assert "projector.weight" in caught.value.why
    assert list(context.output.iterdir()) == []


def test_a_teacher_may_have_parameters_that_only_training_reads(tmp_path: Path) -> None:
    notes = Notes()
    branchy = artefact(BRANCHY, epochs=1)
    context = export_context(tmp_path / "out", branchy, artefact(TINY))
    export.run(_with(context, notes))
    assert any("leaves out 45 parameters" in note for note in notes.notes)
    report = json.loads((context.output / "parity.json").read_text())["teacher"]
    assert report["parameters_network"] - report["parameters_graph"] == 45


def test_more_parameters_than_the_card_says_are_refused(tmp_path: Path) -> None:
    changed = tmp_path / "student"
    shutil.copytree(artefact(TINY), changed)
    card = json.loads((changed / "model.json").read_text())
    card["parameters"] -= 45
    (changed / "model.json").write_text(json.dumps(card))
    with raises(StageError, what="does not have the parameters that its card lists"):
        export.run(export_context(tmp_path / "out", artefact(TINY), changed))


def test_every_weight_of_the_file_is_finite() -> None:
    for tensor in onnx.load(exported() / "student.onnx").graph.initializer:
        assert np.isfinite(numpy_helper.to_array(tensor).astype(np.float64)).all()


def _dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _with(context: Context, notes: Notes) -> Context:
    from dataclasses import replace

    return replace(context, progress=notes)
