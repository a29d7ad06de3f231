"""The bundle's program reports every fault of the bundle and of its runtimes, never by a traceback."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.bundle import predict
from stages.runtimes import parity
from stages.runtimes.images import natural_images
from tests.stages.runtimes.networks import CLASSES, MEAN, STD, source_of

GOOD, OTHER, ELSEWHERE = "onnxruntime-fp32", "onnxruntime-int8", "abacus-fp32"
"""Two targets that run here, and one whose runtime does not exist."""


class Bundle:
    """A bundle in a folder, with the faults that a test puts in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def manifest(self, change: Callable[[dict[str, Any]], object]) -> None:
        file = self.folder / "manifest.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        change(content)
        file.write_text(json.dumps(content), encoding="utf-8")

    def replace(self, path: str, content: bytes, *, with_digest: bool = False) -> None:
        """Replace a file's content; `with_digest`: also in the manifest, so that no damage shows."""
        (self.folder / path).write_bytes(content)
        if with_digest:
            sha256 = hashlib.sha256(content).hexdigest()
            self.manifest(lambda manifest: manifest["files"].update({path: {"sha256": sha256}}))

    def run(self, *words: str, packages: Path | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "predict.py", *words],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(packages or "")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr
        return done


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    folder = tmp_path / "bundle"
    source = source_of("cnn")
    images = natural_images(source.image_shape, 6)
    (folder / "golden").mkdir(parents=True)
    np.save(folder / "golden" / "inputs.npy", images)
    logits = parity.source_logits(source.onnx, source, images)
    for name in (GOOD, OTHER, ELSEWHERE):
        (folder / "models" / name).mkdir(parents=True)
        shutil.copyfile(source.onnx, folder / "models" / name / "model.onnx")
        np.save(folder / "golden" / f"{name}.npy", logits)
    shutil.copyfile(predict.__file__, folder / "predict.py")
    (folder / "labels.txt").write_text("\n".join(map(str, range(CLASSES))), encoding="utf-8")
    files = {
        path.relative_to(folder).as_posix(): {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.rglob("*")
        if path.is_file()
    }
    height, _, channels = source.image_shape
    facts = {"image_size": height, "channels": channels, "resize": "bilinear", "scale": 1 / 255}
    entry = {"batch_max": 8, "tolerance": 1e-3, "least_agreement": 1.0, "top1": None}
    manifest = {
        "default_target": GOOD,
        "input": source.input,
        "preprocessing": {**facts, "mean": MEAN, "std": STD},
        "targets": {name: {**entry, "runtime": name.rpartition("-")[0]} for name in (GOOD, OTHER, ELSEWHERE)},
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return Bundle(folder)


def test_a_whole_bundle_passes(bundle: Bundle) -> None:
    done = bundle.run("--selftest")
    assert done.returncode == 0, done.stderr
    assert f"{GOOD}: passed" in done.stdout
    assert f"{OTHER}: passed" in done.stdout
    assert f"{ELSEWHERE}: not tested" in done.stdout
    assert done.stderr == ""


def test_every_damaged_file_is_reported_and_the_other_models_are_tested(bundle: Bundle) -> None:
    bundle.replace(f"models/{OTHER}/model.onnx", b"\x08\x07 no model")
    (bundle.folder / "labels.txt").unlink()
    done = bundle.run("--selftest")
    assert done.returncode == 1
    assert f"failed: models/{OTHER}/model.onnx is damaged" in done.stderr
    assert "failed: labels.txt is missing" in done.stderr
    assert "2 wrong" in done.stdout
    assert f"{OTHER}: not tested, its files are damaged" in done.stdout
    assert f"{GOOD}: passed" in done.stdout


def test_every_refused_model_is_reported_with_its_reason(bundle: Bundle) -> None:
    """Right digests, but no runtime loads the first, and the second gives outputs of another shape."""
    bundle.replace(f"models/{GOOD}/model.onnx", b"no model", with_digest=True)
    wrong = np.load(bundle.folder / "golden" / f"{OTHER}.npy")[:, 1:]
    np.save(bundle.folder / "golden" / f"{OTHER}.npy", wrong)
    content = (bundle.folder / "golden" / f"{OTHER}.npy").read_bytes()
    bundle.replace(f"golden/{OTHER}.npy", content, with_digest=True)
    (bundle.folder / "labels.txt").write_text("damaged", encoding="utf-8")
    done = bundle.run("--selftest")
    assert done.returncode == 1
    assert f"failed: {GOOD}: onnxruntime refuses the model: " in done.stderr
    assert f"{GOOD}: FAILED, onnxruntime refuses the model: " in done.stdout
    assert f"failed: {OTHER}: its outputs have the shape" in done.stderr
    assert "failed: labels.txt is damaged" in done.stderr
    assert "self-test failed, 3 faults" in done.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [("inputs", b""), ("inputs", b"\x93NUMPY"), (GOOD, b"PK\x03\x04 zip"), (GOOD, b"\x80 pickle")],
)
def test_golden_files_that_cannot_be_read_are_reported(name: str, content: bytes, bundle: Bundle) -> None:
    bundle.replace(f"golden/{name}.npy", content, with_digest=True)
    done = bundle.run("--selftest")
    assert done.returncode == 1
    assert f"golden/{name}.npy cannot be read" in done.stderr
    assert (f"{OTHER}: passed" in done.stdout) == (name != "inputs")


def test_a_self_test_without_limits_to_compare_with_fails(bundle: Bundle) -> None:
    bundle.manifest(lambda manifest: manifest["targets"][GOOD].pop("tolerance"))
    done = bundle.run("--selftest")
    assert done.returncode == 1
    assert "the target has no 'tolerance'" in done.stderr
    assert f"{OTHER}: passed" in done.stdout


@pytest.mark.parametrize("words", [["--selftest"], ["image.npy"], ["--list"]])
def test_an_unknown_target_is_a_usage_error_that_lists_the_targets(words: list[str], bundle: Bundle) -> None:
    done = bundle.run(*words, "--target", "onnxruntime-fp23")
    assert done.returncode == 2
    assert f"this bundle has no target 'onnxruntime-fp23'; it has: {GOOD}, {OTHER}" in done.stderr


@pytest.mark.parametrize("word", ["--selftest", "images.npy"])
def test_a_target_whose_runtime_is_not_there_is_exit_code_4(word: str, bundle: Bundle) -> None:
    shutil.copyfile(bundle.folder / "golden" / "inputs.npy", bundle.folder / "images.npy")
    assert bundle.run(word, "--target", ELSEWHERE).returncode == 4


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "--selftest"),
        (b"", "--selftest"),
        (b"[]", "--selftest"),
        (b"\xff\xfe", "--selftest"),
        (b"{}", "--selftest"),
        (None, "--list"),
        (b"{", "--list"),
        (None, "images.npy"),
        (b'"x"', "images.npy"),
    ],
)
def test_a_damaged_manifest_is_exit_code_1(content: bytes | None, word: str, bundle: Bundle) -> None:
    shutil.copyfile(bundle.folder / "golden" / "inputs.npy", bundle.folder / "images.npy")
    if content is None:
        (bundle.folder / "manifest.json").unlink()
    else:
        bundle.replace("manifest.json", content)
    done = bundle.run(word)
    assert done.returncode == 1
    assert "manifest.json" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("targets", []),
        ("targets", {GOOD: {}}),
        ("preprocessing", {"image_size": 24}),
        ("default_target", None),
        ("default_target", "gone-fp32"),
        ("files", None),
        ("files", {"labels.txt": {}}),
    ],
)
def test_a_manifest_with_a_wrong_value_is_exit_code_1(key: str, value: Any, bundle: Bundle) -> None:
    shutil.copyfile(bundle.folder / "golden" / "inputs.npy", bundle.folder / "images.npy")
    bundle.manifest(lambda manifest: manifest.update({key: value}))
    done = bundle.run("--selftest") if key == "files" else bundle.run("images.npy")
    assert done.returncode == 1
    assert "manifest" in done.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none.png", None),
        ("text.png", b"no image"),
        ("cut.png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00"),
        ("empty.npy", b""),
        ("zip.npy", b"PK\x03\x04"),
        ("folder", b"folder"),
    ],
)
def test_an_image_that_cannot_be_read_is_a_usage_error(
    name: str, content: bytes | None, bundle: Bundle
) -> None:
    if content == b"folder":
        (bundle.folder / name).mkdir()
    elif content is not None:
        (bundle.folder / name).write_bytes(content)
    done = bundle.run(name)
    assert done.returncode == 2
    assert name in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        (f"models/{GOOD}/model.onnx", b"no model", "onnxruntime refuses the model: "),
        (f"models/{GOOD}/model.onnx", None, f"models/{GOOD} has no file *.onnx"),
        ("labels.txt", b"0\n1", "labels.txt is damaged: it has 2 lines"),
        ("labels.txt", None, "labels.txt cannot be read"),
    ],
)
def test_a_damaged_bundle_labels_nothing(
    path: str, content: bytes | None, message: str, bundle: Bundle
) -> None:
    shutil.copyfile(bundle.folder / "golden" / "inputs.npy", bundle.folder / "images.npy")
    if content is None:
        (bundle.folder / path).unlink()
    else:
        bundle.replace(path, content)
    done = bundle.run("images.npy")
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("package", "code", "message"),
    [
        ("raise OSError('libx.so: cannot open')", 4, "onnxruntime cannot be imported (libx.so: cannot open)"),
        ("raise ImportError('no core')", 4, "onnxruntime is not installed (no core)"),
        ("class SessionOptions: pass\n", 1, "onnxruntime refuses the model: AttributeError"),
    ],
)
@pytest.mark.parametrize("words", [["--selftest"], ["images.npy"]])
def test_a_runtime_may_raise_anything(
    package: str, code: int, message: str, words: list[str], bundle: Bundle, tmp_path: Path
) -> None:
    shutil.copyfile(bundle.folder / "golden" / "inputs.npy", bundle.folder / "images.npy")
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "onnxruntime.py").write_text(package, encoding="utf-8")
    done = bundle.run(*words, packages=packages)
    assert done.returncode == code
    assert message in done.stdout + done.stderr
    if words == ["--selftest"]:
        assert "0 wrong" in done.stdout
        assert done.stdout.count(message) == 2, "both models are reported"


@pytest.mark.parametrize("words", [["--selftest"], ["images.npy"]])
def test_without_numpy_the_program_says_what_to_install(
    words: list[str], bundle: Bundle, tmp_path: Path
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "numpy.py").write_text("raise ImportError('no numpy here')", encoding="utf-8")
    done = bundle.run(*words, packages=packages)
    assert done.returncode == 4
    assert "needs numpy" in done.stderr
