"""package: a bundle that proves itself without kdpipe."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from PIL import Image

from pipeline.errors import StageError
from tests.errors import raises
from tests.stages.line import Line, profile


@pytest.fixture(scope="module")
def bundle(whole_line: Line) -> Path:
    return whole_line.folder / "package" / "bundle"


def predict(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the bundle's program in isolated mode, so that nothing of this checkout can be imported."""
    command = [sys.executable, "-I", str(bundle / "predict.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=bundle.parent)


def test_the_bundle_holds_what_a_device_needs(bundle: Path) -> None:
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert {
        "labels.txt",
        "preprocessing.json",
        "predict.py",
        "requirements.txt",
        "MODEL_CARD.md",
        "manifest.json",
        "golden/inputs.npy",
        "golden/onnxruntime-fp32.npy",
    } <= files
    assert any(file.startswith("models/onnxruntime-int8/") for file in files)


def test_every_file_stands_in_the_manifest_with_its_digest(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == files - {"manifest.json"}
    for path, entry in manifest["files"].items():
        content = (bundle / path).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert len(content) == entry["size"]


def test_the_archive_has_the_same_content_and_the_same_bytes_twice(
    whole_line: Line, bundle: Path, tmp_path: Path
) -> None:
    archive = whole_line.folder / "package" / "tiny.tar.zst"
    unpacked = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(archive.read_bytes())).read()
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as tar:
        tar.extractall(tmp_path, filter="data")
    for path in (path for path in bundle.rglob("*") if path.is_file()):
        assert (tmp_path / "tiny" / path.relative_to(bundle)).read_bytes() == path.read_bytes()
    whole_line.stage("package", tmp_path / "again")
    assert (tmp_path / "again" / "tiny.tar.zst").read_bytes() == archive.read_bytes()


def test_the_self_test_passes(bundle: Path) -> None:
    finished = predict(bundle, "--selftest")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "onnxruntime-fp32: passed" in finished.stdout
    assert "onnxruntime-int8: passed" in finished.stdout


def test_the_self_test_finds_a_damaged_model(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    file = next((copy / "models" / "onnxruntime-fp32").glob("*.onnx"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)
    finished = predict(copy, "--selftest")
    assert finished.returncode == 1
    assert "is damaged" in finished.stderr


def test_the_self_test_finds_another_model_under_a_mended_manifest(bundle: Path, tmp_path: Path) -> None:
    """Right digests, wrong outputs: the golden comparison has to notice."""
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    golden = copy / "golden" / "onnxruntime-fp32.npy"
    np.save(golden, np.roll(np.load(golden), 1, axis=0))
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["golden/onnxruntime-fp32.npy"]["sha256"] = hashlib.sha256(
        golden.read_bytes()
    ).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    finished = predict(copy, "--selftest", "--target", "onnxruntime-fp32")
    assert finished.returncode == 1
    assert "FAILED" in finished.stdout


def test_an_image_file_gets_the_label_its_pixels_get(bundle: Path, tmp_path: Path) -> None:
    inputs = np.load(bundle / "golden" / "inputs.npy")
    expected = np.load(bundle / "golden" / "onnxruntime-fp32.npy").argmax(1)
    labels = (bundle / "labels.txt").read_text(encoding="utf-8").splitlines()
    files = []
    for index in range(3):
        file = tmp_path / f"{index}.png"
        Image.fromarray(inputs[index].squeeze()).save(file)
        files.append(str(file))
    finished = predict(bundle, *files, "--json", "--target", "onnxruntime-fp32", "--top", "2")
    assert finished.returncode == 0, finished.stderr
    said: dict[str, Any] = json.loads(finished.stdout)
    assert [best[0]["label"] for best in said["predictions"]] == [labels[k] for k in expected[:3]]
    assert all(len(best) == 2 for best in said["predictions"])


def test_wrong_use_is_told_in_one_line(bundle: Path, tmp_path: Path) -> None:
    missing = predict(bundle, str(tmp_path / "none.png"))
    assert missing.returncode == 2
    assert "none.png" in missing.stderr
    unknown = predict(bundle, "x.png", "--target", "abacus-fp32")
    assert unknown.returncode == 2
    assert "onnxruntime-fp32" in unknown.stderr
    assert "Traceback" not in missing.stderr + unknown.stderr


def test_the_requirements_pin_the_measured_runtime(bundle: Path) -> None:
    import onnxruntime

    text = (bundle / "requirements.txt").read_text(encoding="utf-8")
    assert f"onnxruntime=={onnxruntime.__version__}" in text


def test_the_requirements_name_nothing_that_pip_cannot_install(whole_line: Line, tmp_path: Path) -> None:
    shutil.copytree(whole_line.folder, tmp_path / "line")
    file = tmp_path / "line" / "build" / "build.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    for target in told["targets"]:
        target["versions"] |= {"gpu": "NVIDIA H100", "cuda": "13.0"}
    file.write_text(json.dumps(told), encoding="utf-8")
    Line(tmp_path / "line", whole_line.profile).stage("package", tmp_path / "package")
    text = (tmp_path / "package" / "bundle" / "requirements.txt").read_text(encoding="utf-8")
    assert "onnxruntime==" in text
    assert "gpu" not in text
    assert "cuda" not in text


def test_the_model_card_states_measured_values(whole_line: Line, bundle: Path) -> None:
    card = (bundle / "MODEL_CARD.md").read_text(encoding="utf-8")
    scorecard = json.loads((whole_line.folder / "measure" / "scorecard.json").read_text(encoding="utf-8"))
    for row in scorecard["rows"]:
        if row["top1"] is None:
            assert row["why_not"] in card
        else:
            assert f"{row['latency'][0]['p50_ms']:.3f}" in card
            assert f"{row['top1']:.2f}" in card
    assert "None" not in card


def test_nothing_to_pack_is_an_error_that_says_so(whole_line: Line, tmp_path: Path) -> None:
    wanting = Line(whole_line.folder, profile(package={"targets": ["tensorrt-fp16"]}))
    with raises(StageError, what="no target to pack"):
        wanting.stage("package", tmp_path / "package")
