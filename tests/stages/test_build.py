from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from pipeline.errors import StageError, UsageError
from pipeline.stage import Context, Silent
from stages import build
from stages.runtimes.images import natural_images
from stages.runtimes.settings import BuildSettings
from tests.errors import raises
from tests.stages.runtimes.networks import SIZES, artefacts
from tests.stages.runtimes.plugins import install_plugin, numpy_runtime

pytestmark = pytest.mark.long


@pytest.fixture
def plugin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path in which a test installs third-party runtimes."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def _settings(*targets: str | tuple[str, bool], **changes: Any) -> SimpleNamespace:
    """A pair says whether the target is required."""
    pairs = [(target, False) if isinstance(target, str) else target for target in targets]
    fields = {"batch_max": 8, "workspace_mb": 256, **changes}
    return SimpleNamespace(
        targets=[SimpleNamespace(name=name, required=required) for name, required in pairs],
        build=BuildSettings(**fields),
    )


def _run(
    folder: Path, settings: SimpleNamespace, *, inputs: dict[str, Path] | None = None
) -> tuple[dict[str, Any], dict[tuple[str, str], dict[str, Any]], Notes]:
    """Metrics, the rows of build.json by model and target, and what was noted."""
    notes = Notes()
    output = folder / "output"
    output.mkdir(parents=True)
    context = Context(
        settings=settings,
        inputs=inputs or artefacts(folder / "inputs", student="cnn"),
        output=output,
        work=folder / "work",
        progress=notes,
    )
    metrics = build.run(context)
    listing = json.loads((output / "build.json").read_text(encoding="utf-8"))
    assert listing["schema_version"] == 1
    return metrics, {(row["model"], row["target"]): row for row in listing["targets"]}, notes


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_builds_and_checks_every_target_beside_the_baseline(tmp_path: Path) -> None:
    settings = _settings("onnxruntime-fp32", "onnxruntime-int8", "openvino-fp32", "openvino-int8")
    metrics, rows, _ = _run(tmp_path, settings)
    assert next(iter(rows)) == ("teacher", "onnxruntime-fp32")
    assert len(rows) == 5
    output = tmp_path / "output"
    for (model, target), row in rows.items():
        assert row["built"] is True, row["why_not"]
        assert row["why_not"] is None
        assert row["hint"] is None
        assert row["folder"] == f"{model}/{target}"
        assert (row["runtime"], row["precision"]) == tuple(target.split("-"))
        files = sorted(path.name for path in (output / row["folder"]).iterdir())
        assert row["files"] == files
        assert row["size_bytes"] == sum((output / row["folder"] / name).stat().st_size for name in files)
        assert row["facts"]["checked"] == "agrees with its source at batch 1, 2, 7"
        assert row["versions"][row["runtime"]]
    baseline = rows["teacher", "onnxruntime-fp32"]
    model = (output / baseline["folder"] / "model.onnx").read_bytes()
    assert baseline["sha256"] == hashlib.sha256(model).hexdigest()
    for role in ("student", "teacher"):
        assert json.loads((output / f"{role}.json").read_text())["role"] == role
    assert metrics["built"] == 5
    assert metrics["machine_cannot"] == []
    precisions = {entry["target"]: entry["effective_precision"] for entry in metrics["targets"]}
    assert precisions["onnxruntime-int8"] == "int8"
    assert precisions["openvino-int8"].startswith("int8+")


def test_equal_work_gives_equal_content(tmp_path: Path) -> None:
    inputs = artefacts(tmp_path / "inputs", student="cnn")
    settings = _settings("onnxruntime-fp32", "onnxruntime-int8", "openvino-fp32", "openvino-int8")
    for name in ("first", "second"):
        _run(tmp_path / name, settings, inputs=inputs)
    first = _digests(tmp_path / "first" / "output")
    assert first == _digests(tmp_path / "second" / "output")
    for file in first:
        assert str(tmp_path).encode() not in (tmp_path / "first" / "output" / file).read_bytes()


@pytest.mark.process
def test_an_engine_without_a_gpu_is_built_and_said_not_to_be_checked(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    _, rows, notes = _run(tmp_path, _settings("tensorrt_rtx-fp16", batch_opt=2))
    row = rows["student", "tensorrt_rtx-fp16"]
    assert row["built"]
    assert row["files"] == ["engine.json", "model.engine"]
    lines = "".join(
        f"{digest}  {name}\n" for name, digest in _digests(tmp_path / "output" / row["folder"]).items()
    )
    assert row["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert row["facts"]["profile"]["input"]["opt"][0] == 2
    if "not run here" in row["facts"]["checked"]:
        assert any("not checked" in line for line in notes.lines)


def _absent_runtime(plugin_folder: Path) -> None:
    code = numpy_runtime("absent").replace(
        'Ability(True, versions={"absent-plugin": "1.2"})',
        'Ability(False, "the absent device is not plugged in", "plug it in")',
    )
    install_plugin(plugin_folder, "absent", code)


def test_a_target_that_cannot_be_built_here_is_recorded_with_its_remedy(
    tmp_path: Path, plugin_folder: Path
) -> None:
    _absent_runtime(plugin_folder)
    metrics, rows, notes = _run(tmp_path, _settings("absent-fp32", "onnxruntime-fp32"))
    row = rows["student", "absent-fp32"]
    assert row["built"] is False
    assert row["why_not"] == "the absent device is not plugged in"
    assert row["hint"] == "plug it in"
    assert row["folder"] is None
    assert row["files"] == []
    assert not (tmp_path / "output" / "student" / "absent-fp32").exists()
    assert rows["student", "onnxruntime-fp32"]["built"]
    assert metrics["not_built"] == 1
    assert metrics["machine_cannot"] == []
    assert any("absent-fp32 is not built" in line for line in notes.lines)


def test_a_required_target_that_cannot_be_built_here_is_named_in_the_metrics(
    tmp_path: Path, plugin_folder: Path
) -> None:
    _absent_runtime(plugin_folder)
    metrics, rows, _ = _run(tmp_path, _settings(("absent-fp32", True), "onnxruntime-fp32"))
    assert metrics["machine_cannot"] == [
        {"target": "absent-fp32", "why": "the absent device is not plugged in", "hint": "plug it in"}
    ]
    assert rows["student", "onnxruntime-fp32"]["built"]


def test_third_party_runtime_is_built_and_checked(tmp_path: Path, plugin_folder: Path) -> None:
    install_plugin(plugin_folder, "reference", numpy_runtime("reference"))
    _, rows, _ = _run(tmp_path, _settings("reference-fp32"))
    assert rows["student", "reference-fp32"]["facts"]["checked"].startswith("agrees")


@pytest.mark.parametrize("required", [False, True])
def test_a_target_that_computes_something_else_does_not_ship(
    required: bool, tmp_path: Path, plugin_folder: Path
) -> None:
    install_plugin(plugin_folder, "wrong", numpy_runtime("wrong", scale=-1.0))
    settings = _settings(("wrong-fp32", required))
    if required:
        with raises(StageError, what="does not compute what its source computes"):
            _run(tmp_path, settings)
        return
    metrics, rows, _ = _run(tmp_path, settings)
    assert rows["student", "wrong-fp32"]["built"] is False
    assert "does not compute" in rows["student", "wrong-fp32"]["why_not"]
    assert "kdpipe debug PROFILE --target wrong-fp32" in str(rows["student", "wrong-fp32"]["hint"])
    assert rows["student", "wrong-fp32"]["disproved"] is True
    assert not (tmp_path / "output" / "student" / "wrong-fp32").exists()
    assert metrics["machine_cannot"] == []


@pytest.mark.parametrize("error", ["MachineCannot", "StageError"])
@pytest.mark.parametrize("place", ["load", "logits"])
def test_only_logits_disprove_a_target(place: str, error: str, tmp_path: Path, plugin_folder: Path) -> None:
    refusal = f'raise errors.{error}("the device is gone")'
    name = f"gone_{place}_{error.lower()}"
    code = numpy_runtime(name).replace("import shutil", "import shutil\n    from pipeline import errors")
    first = {
        "load": 'return Session(folder / "model.onnx", source)',
        "logits": 'logits = self.evaluator.run(["logits"], {"input": as_input(images, self.source)})[0]',
    }[place]
    assert first in code
    install_plugin(plugin_folder, name, code.replace(first, refusal))
    _, rows, _ = _run(tmp_path, _settings(f"{name}-fp32"))
    row = rows["student", f"{name}-fp32"]
    assert (row["built"], row["why_not"]) == (False, "the device is gone")
    assert row["disproved"] is (place == "logits" and error == "StageError")


def test_a_target_is_proved_on_the_real_images_that_export_left(tmp_path: Path, plugin_folder: Path) -> None:
    install_plugin(plugin_folder, "sound", numpy_runtime("sound"))
    inputs = artefacts(tmp_path / "inputs", student="cnn")
    real = natural_images((SIZES["cnn"], SIZES["cnn"], 3), 20, seed=9)
    np.save(inputs["export"] / "images.npy", real)
    metrics, rows, _ = _run(tmp_path, _settings("sound-fp32"), inputs=inputs)
    assert rows["student", "sound-fp32"]["disproved"] is False
    figures = next(entry for entry in metrics["targets"] if entry["target"] == "sound-fp32")
    assert (figures["images"], figures["top1_agreement"]) == (22, 100.0)
    assert figures["rows_relative_to_std"] < 0.01


def test_images_that_all_look_the_same_to_the_source_prove_nothing(tmp_path: Path) -> None:
    inputs = artefacts(tmp_path / "inputs", student="cnn")
    model = onnx.load(inputs["export"] / "student.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            zeros = np.zeros(tuple(tensor.dims), np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, tensor.name))
    onnx.save(model, inputs["export"] / "student.onnx")
    _, rows, _ = _run(tmp_path, _settings("onnxruntime-fp32"), inputs=inputs)
    assert rows["student", "onnxruntime-fp32"]["disproved"] is True
    assert "the same logits for every image" in rows["student", "onnxruntime-fp32"]["why_not"]


def test_without_proofs_a_wrong_target_is_kept_and_the_failure_is_noted(
    tmp_path: Path, plugin_folder: Path
) -> None:
    install_plugin(plugin_folder, "wrong", numpy_runtime("wrong", scale=-1.0))
    _, rows, notes = _run(tmp_path, _settings(("wrong-fp32", True), prove=False))
    assert rows["student", "wrong-fp32"]["built"] is True
    assert rows["student", "wrong-fp32"]["facts"]["checked"].startswith("DOES NOT AGREE")
    assert any("does not compute" in line for line in notes.lines)


@pytest.mark.parametrize("required", [False, True])
def test_a_file_that_the_builder_refuses(required: bool, tmp_path: Path) -> None:
    inputs = artefacts(tmp_path / "inputs", student="cnn")
    (inputs["quantize"] / "student.int8.signed.onnx").write_bytes(b"not a model")
    settings = _settings(("openvino-int8", required), "onnxruntime-fp32")
    if required:
        with raises(StageError, what="OpenVINO refuses"):
            _run(tmp_path, settings, inputs=inputs)
        return
    _, rows, _ = _run(tmp_path, settings, inputs=inputs)
    assert rows["student", "openvino-int8"]["built"] is False
    assert "OpenVINO refuses" in rows["student", "openvino-int8"]["why_not"]
    assert rows["student", "onnxruntime-fp32"]["built"]


def test_a_missing_int8_file_fails_the_stage(tmp_path: Path) -> None:
    inputs = artefacts(tmp_path / "inputs", student="cnn")
    shutil.rmtree(inputs["quantize"])
    inputs["quantize"].mkdir()
    with raises(StageError, what="is missing") as caught:
        _run(tmp_path, _settings("onnxruntime-int8"), inputs=inputs)
    assert caught.value.hint == "kdpipe quantize PROFILE"


def test_a_plain_graph_is_built_and_checked(tmp_path: Path) -> None:
    inputs = artefacts(tmp_path / "inputs", student="cnn", preprocessing=False)
    _, rows, _ = _run(tmp_path, _settings("onnxruntime-int8", "openvino-fp32"), inputs=inputs)
    assert all(row["facts"]["checked"].startswith("agrees") for row in rows.values())


def test_only_batches_that_the_targets_take_are_tried(tmp_path: Path) -> None:
    settings = _settings("onnxruntime-fp32", batch_min=2, batch_opt=4, batch_max=4)
    _, rows, _ = _run(tmp_path, settings)
    checked = rows["student", "onnxruntime-fp32"]["facts"]["checked"]
    assert checked == "agrees with its source at batch 2"


def test_unknown_runtimes_and_precisions_are_refused_before_anything_runs() -> None:
    with raises(UsageError, what="unknown runtime 'onnxrt'"):
        build.check(_settings("onnxrt-fp32"))
    with raises(UsageError, what="openvino does not offer fp16") as caught:
        build.check(_settings("onnxruntime-fp32", "openvino-fp16"))
    assert "openvino-fp32, openvino-bf16, openvino-int8" in caught.value.hint
    build.check(_settings("tensorrt-fp16", "tensorrt_rtx-int8"))
