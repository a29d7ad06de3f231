"""The reference bundle: a file that is none is an error, and a target that does not run is left out."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from pipeline.errors import StageError
from stages.measuring import comparisons, reference_bundle
from stages.measuring.launch import Subject
from stages.measuring.settings import MeasureSettings
from tests.errors import raises
from tests.stages.onnx_files.trained_files import Notes
from tests.stages.runtimes.networks import exported

CARD: dict[str, Any] = {
    "preprocessing": {"image_size": 24, "channels": 3, "mean": [0.45] * 3, "std": [0.25] * 3},
    "input": "uint8_nhwc",
}
QUICK = MeasureSettings(warmup_s=0.02, warmup_max_s=0.1, compare_s=0.1)


def packed(place: Path, manifest: str) -> str:
    """A bundle of nothing but its manifest."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        entry = tarfile.TarInfo("mine/manifest.json")
        entry.size = len(manifest.encode())
        tar.addfile(entry, io.BytesIO(manifest.encode()))
    file = place / "mine.tar.zst"
    file.write_bytes(zstandard.ZstdCompressor().compress(raw.getvalue()))
    return str(file)


def manifest(**targets: str) -> str:
    """Of a bundle with these targets, each by its runtime."""
    entries = {
        name: {"runtime": runtime, "precision": "fp32", "batch_max": None}
        for name, runtime in targets.items()
    }
    return json.dumps({**CARD, "files": {}, "targets": entries})


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        "3",
        "{}",
        '{"files": []}',
        '{"files": {"a": 1}}',
        '{"files": {}, "preprocessing": {}}',
        json.dumps({**CARD, "files": {}, "targets": {"a-fp32": {}}}),
        json.dumps({**CARD, "files": {}, "targets": {"a-fp32": "b"}}),
    ],
)
def test_a_manifest_that_is_no_bundle_s_is_told(tmp_path: Path, text: str) -> None:
    with raises(StageError, what="cannot be used") as caught:
        reference_bundle.subjects(packed(tmp_path, text), CARD, tmp_path / "images.npy", tmp_path / "work")
    assert "manifest.json" in caught.value.why
    assert "mine.tar.zst" in caught.value.where
    assert "measure.reference" in caught.value.hint


def test_a_runtime_that_is_not_known_here_is_left_out_and_told(tmp_path: Path) -> None:
    archive = packed(tmp_path, manifest(good="onnxruntime", other="of_tomorrow"))
    targets = reference_bundle.subjects(archive, CARD, tmp_path / "images.npy", tmp_path / "work")
    notes = Notes()
    assert list(reference_bundle.runnable(targets, notes)) == ["good"]
    (note,) = notes.notes
    assert note.startswith("other of the reference bundle is not timed: unknown runtime 'of_tomorrow'")


@pytest.fixture
def student(tmp_path: Path) -> Subject:
    """A small network that runs."""
    folder = tmp_path / "student"
    folder.mkdir()
    shutil.copyfile(exported("cnn"), folder / "model.onnx")
    np.save(tmp_path / "images.npy", np.zeros((2, 24, 24, 3), np.uint8))
    return Subject(
        target={"model": "student", "target": "t-fp32", "runtime": "onnxruntime", "precision": "fp32"},
        card=CARD,
        folder=folder,
        images=tmp_path / "images.npy",
        work=tmp_path / "work",
    )


def earlier(student: Subject, folder: Path, **facts: Any) -> dict[str, Subject]:
    """The same target as the bundle before had it, in this folder."""
    target = {**student.target, "model": reference_bundle.MODEL, "facts": facts}
    return {"t-fp32": replace(student, target=target, folder=folder)}


def test_an_earlier_target_that_does_not_load_is_left_out_and_told(student: Subject, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"no network")
    notes = Notes()
    assert comparisons.measure([student], QUICK, tmp_path, notes, earlier=earlier(student, broken)) == []
    (note,) = notes.notes
    assert note.startswith("t-fp32 of the reference bundle is not timed: ")
    assert "cannot load a built target" in note
    other = replace(student, target={**student.target, "target": "t-int8", "precision": "int8"})
    with raises(StageError, what="cannot load a built target"):  # its own fault is one still
        comparisons.measure([student, replace(other, folder=broken)], QUICK, tmp_path, notes)


def test_an_earlier_target_is_held_against_its_namesake_at_batches_that_it_takes(
    student: Subject, tmp_path: Path
) -> None:
    notes = Notes()
    before = earlier(student, student.folder, batch_max=4)
    (comparison,) = comparisons.measure([student], QUICK, tmp_path, notes, earlier=before)
    assert (comparison["first"]["model"], comparison["second"]["model"]) == ("reference", "student")
    at_8 = QUICK.model_copy(update={"batch_sizes": [8]})
    assert comparisons.measure([student], at_8, tmp_path, notes, earlier=before) == []
    from_4 = earlier(student, student.folder, batch_min=4)
    assert comparisons.measure([student], QUICK, tmp_path, notes, earlier=from_4) == []
    assert notes.notes == []
