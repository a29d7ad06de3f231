"""What the stage quantize does about a file that loses too much: a fine-tune under its rounding."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pipeline.errors import StageError, UsageError
from pipeline.stage import Context
from stages import build, quantize
from stages.debugging.line import debug_line
from stages.onnx_files.lint import tensorrt_ready
from stages.onnx_files.sessions import open_session
from stages.quantization_aware.rounded_file import read_rounding
from stages.runtimes.settings import BuildSettings
from stages.training import checkpoint
from tests.errors import raises
from tests.stages.onnx_files.trained import digits
from tests.stages.onnx_files.trained_files import Notes
from tests.stages.quantization_aware import coarse
from tests.stages.training.tiny import Recorder, Stopped

pytestmark = pytest.mark.long

TARGETS = {"signed": "openvino-int8", "x86": "onnxruntime-int8"}


@functools.cache
def quantized(recipe: str, when: str, **own: Any) -> Path:
    context = coarse.context(target=TARGETS[recipe], when=when, **own)
    quantize.run(context)
    return context.output


def figures(folder: Path, recipe: str) -> dict[str, Any]:
    report = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))
    file: dict[str, Any] = report["files"][recipe]
    return file


def top1_on_test(folder: Path, recipe: str) -> float:
    session = open_session(folder / f"student.int8.{recipe}.onnx", optimise=False)
    test = digits().test
    (logits,) = session.run(["logits"], {"input": test.images.batch(np.arange(len(test)))})
    return 100.0 * float((logits.argmax(axis=1) == test.labels).mean())


@pytest.mark.parametrize("recipe", list(TARGETS))
def test_a_coarse_file_is_won_back(recipe: str) -> None:
    before, after = (quantized(recipe, when) for when in ("never", "always"))
    facts = figures(after, recipe)["quantization_aware"]
    assert facts["kept"]
    assert facts["before_top1"] == figures(before, recipe)["top1"]
    assert facts["after_top1"] == figures(after, recipe)["top1"]
    assert facts["float_top1"] - facts["before_top1"] > 5
    assert facts["recovered_share"] > 0.5
    assert facts["gain"]["ci"][0] > 0
    assert top1_on_test(after, recipe) > top1_on_test(before, recipe) + 3
    assert abs(facts["simulated_top1"] - facts["after_top1"]) < 2


@pytest.mark.parametrize("recipe", list(TARGETS))
def test_the_file_has_the_same_form_as_before(recipe: str) -> None:
    files = [
        onnx.load(quantized(recipe, when) / f"student.int8.{recipe}.onnx") for when in ("never", "always")
    ]
    before, after = ([(node.name, node.op_type) for node in file.graph.node] for file in files)
    assert before == after
    kinds = [
        {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in file.graph.initializer}
        for file in files
    ]
    assert kinds[0] == kinds[1]
    if recipe == "signed":
        assert tensorrt_ready(quantized(recipe, "always") / f"student.int8.{recipe}.onnx") == []


def _scales(folder: Path) -> dict[str, float]:
    graph = onnx.load(folder / "student.int8.signed.onnx").graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {
        node.input[0]: float(constants[node.input[1]])
        for node in graph.node
        if node.op_type == "QuantizeLinear"
    }


def test_ranges_are_learned_unless_they_are_to_stay() -> None:
    before, learned = (_scales(quantized("signed", when)) for when in ("never", "always"))
    fixed = _scales(quantized("signed", "always", learn_ranges=False))
    assert fixed == pytest.approx(before, rel=1e-5)
    assert all(learned[name] != pytest.approx(before[name], rel=1e-5) for name in before)


def test_the_float_network_it_was_made_from_lies_beside_it() -> None:
    folder = quantized("signed", "always")
    tuned, before = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}
        for file in (folder / "student.tuned.signed.onnx", coarse.exported() / "student.onnx")
    )
    weights = read_rounding(onnx.load(folder / "student.int8.signed.onnx")).weights
    assert len(weights) == 4
    for weight in weights:
        values = tuned[f"{weight.module}.weight"]
        step = np.abs(weight.values).max() / weight.levels
        assert np.abs(weight.values - values).max() <= 0.51 * step
        assert not np.array_equal(values, before[f"{weight.module}.weight"])
    assert not (quantized("signed", "never") / "student.tuned.signed.onnx").exists()


def test_debug_holds_it_against_the_float_network_it_was_made_from(tmp_path: Path) -> None:
    context = coarse.context()
    folders = {**context.inputs, "quantize": quantized("signed", "always"), "build": tmp_path / "build"}
    folders["build"].mkdir()
    settings = SimpleNamespace(
        data=context.settings.data, targets=context.settings.targets, build=BuildSettings()
    )
    build.run(Context(settings=settings, inputs=folders, output=folders["build"], work=tmp_path))
    request = {"model": "student", "target": None, "tolerance": None, "images": 8}
    report = debug_line(settings, folders, request, tmp_path / "out", Notes())
    assert "student.tuned.signed.onnx -> student.int8.signed.onnx" in [
        step["step"] for step in report["steps"]
    ]


def test_a_file_within_its_budget_is_left_alone() -> None:
    context = coarse.context(when="missed")
    wide = context.settings.quantize.model_copy(update={"budget_points": 100.0})
    settings = SimpleNamespace(**{**vars(context.settings), "quantize": wide})
    quantize.run(replace(context, settings=settings))
    assert figures(context.output, "signed")["quantization_aware"] is None
    assert (context.output / "student.int8.signed.onnx").read_bytes() == (
        quantized("signed", "never") / "student.int8.signed.onnx"
    ).read_bytes()


def test_a_fine_tune_that_does_not_help_is_not_kept() -> None:
    notes = Notes()
    context = coarse.context(epochs=1, fraction=0.05, learning_rate=1e-7, learn_ranges=False, progress=notes)
    quantize.run(context)
    file_figures = figures(context.output, "signed")
    assert file_figures["quantization_aware"]["kept"] is False
    assert file_figures["top1"] == file_figures["quantization_aware"]["before_top1"]
    assert (context.output / "student.int8.signed.onnx").read_bytes() == (
        quantized("signed", "never") / "student.int8.signed.onnx"
    ).read_bytes()
    assert any("not used" in note for note in notes.notes)


def test_a_fine_tune_that_would_not_pass_the_proof_is_not_kept() -> None:
    """However often it is right: the file before it may pass."""
    notes = Notes()
    context = coarse.context(progress=notes)
    strict = context.settings.quantize.model_copy(update={"agreement": 100.0, "prove": False})
    quantize.run(replace(context, settings=SimpleNamespace(**{**vars(context.settings), "quantize": strict})))
    file_figures = figures(context.output, "signed")
    facts = file_figures["quantization_aware"]
    assert facts["after_top1"] > facts["before_top1"] == file_figures["top1"]
    assert facts["after_agreement"] < 100
    assert facts["kept"] is False
    assert any(
        "less than quantize.agreement (100 %), so the fine-tuned file is not used" in note
        for note in notes.notes
    )


def test_a_fine_tune_that_diverges_says_which_key_to_change() -> None:
    with raises(StageError, what="diverged") as caught:
        quantize.run(coarse.context(epochs=1, learning_rate=1e30))
    assert "quantize.distill.learning_rate" in caught.value.hint


def test_a_batch_larger_than_the_training_set_is_refused() -> None:
    with raises(UsageError, what="larger") as caught:
        quantize.run(coarse.context(batch_size=5000))
    assert caught.value.where == "quantize.distill.batch_size"


def test_a_stopped_fine_tune_goes_on_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    with pytest.raises(Stopped):
        quantize.run(coarse.context(work=tmp_path, progress=_StopsInEpoch(2)))
    again = Recorder()
    context = coarse.context(work=tmp_path, progress=again)
    quantize.run(context)
    assert any("training resumed after epoch 1 of 3" in note for note in again.notes)
    whole = quantized("signed", "always")
    for name in ("student.int8.signed.onnx", "student.tuned.signed.onnx"):
        assert (context.output / name).read_bytes() == (whole / name).read_bytes()


class _StopsInEpoch(Recorder):
    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def update(self, done: float, total: float, unit: str = "", **facts: float | str) -> None:
        # Before the epoch's first step is reported, the epoch before it has written its checkpoint.
        if facts.get("quantization_aware") and facts.get("epoch") == self.epoch:
            raise Stopped


def test_without_a_fine_tune_nothing_of_training_is_loaded(tmp_path: Path) -> None:
    """ONNX Runtime's own shape inference loads PyTorch where it finds it; that is all."""
    context = coarse.context(when="never")
    shutil.copytree(context.inputs["export"], tmp_path / "export")
    program = f"""
import sys
from pathlib import Path
from types import SimpleNamespace
from pipeline.stage import Context
from stages import quantize
from stages.settings import profile_model
profile = profile_model()(
    data={{"name": "digits", "image_size": 16, "validation": 0.2}},
    teacher={{"model": "a"}}, student={{"model": "b"}}, targets=["openvino-int8"],
    # How well so coarse a file agrees depends on the arithmetic of the machine, and is not the point.
    quantize={{"images": 32, "holdout": 32, "prove": False, "distill": {{"when": "never"}}}},
)
reads = ("seed", "compute", "data", "distill", "quantize", "targets")
output = Path({str(tmp_path)!r}) / "output"
output.mkdir()
quantize.run(Context(
    settings=SimpleNamespace(**{{name: getattr(profile, name) for name in reads}}),
    inputs={{"export": Path({str(tmp_path)!r}) / "export"}}, output=output, work=output,
))
print(sorted(set(sys.modules) & {{"timm", "lightning_fabric", "stages.quantization_aware.fine_tune"}}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("own", "devices", "match"),
    [
        ({"batch_size": 33}, 2, "shared equally by 2 devices"),
        ({"batch_size": 5000}, 1, "larger than the training set"),
    ],
)
def test_a_batch_that_cannot_be_made_is_refused_before_anything_runs(
    own: dict[str, Any], devices: int, match: str
) -> None:
    settings = coarse.context(**own).settings
    settings.compute = settings.compute.model_copy(update={"devices": devices})
    with raises(UsageError, what=match) as caught:
        quantize.check(settings)
    assert caught.value.where == "quantize.distill.batch_size"


def test_what_the_fine_tune_takes_over_from_distill_refuses_no_profile() -> None:
    """distill is checked by itself, and a fine-tune is only for a file that loses too much."""
    settings = coarse.context(when="missed").settings
    settings.distill = settings.distill.model_copy(update={"batch_size": 5000})
    quantize.check(settings)
