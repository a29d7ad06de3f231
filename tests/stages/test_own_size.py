"""A teacher that sees the images at another size and by other constants than the student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image

from pipeline.errors import ModelError, UsageError
from stages import distill, train
from stages.data.load import load
from stages.models import card as cards
from stages.models.macs import macs
from tests.errors import raises
from tests.processes import starts_processes
from tests.stages.line import Line, profile
from tests.stages.training import tiny

pytestmark = pytest.mark.long

MEAN, STD = 0.2, 0.6
SIZES = {"data": 16, "teacher": 24}


@pytest.fixture(scope="module")
@starts_processes
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """Up to measure: digits at 16 pixels, a teacher that sees 24."""
    told = profile(
        teacher={"model": "test_resnet", "image_size": SIZES["teacher"], "mean": [MEAN], "std": [STD]},
        train={"epochs": 2},
        distill={"epochs": 1, "baseline": False},
        targets=["onnxruntime-fp32"],
    )
    stages = ("train", "distill", "evaluate", "export", "quantize", "build", "measure", "gate", "package")
    return Line(tmp_path_factory.mktemp("line"), told).run(*stages)


def plain_logits(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of a split: each image resized by Pillow, normalised by hand."""
    data = load(profile().data)
    part = getattr(data, split)
    images = part.images.batch(np.arange(len(part.labels)))[..., 0]
    side = (SIZES["teacher"], SIZES["teacher"])
    # In floats ("F"): nothing is rounded to whole grey values.
    resized = [
        np.asarray(Image.fromarray(image.astype(np.float32)).resize(side, Image.Resampling.BILINEAR))
        for image in images
    ]
    shown = torch.from_numpy((np.stack(resized) / 255.0 - MEAN) / STD).float()[:, None]
    network, _ = cards.load(folder)
    with torch.no_grad():
        return network(shown).numpy(), part.labels


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_the_card_tells_how_the_teacher_is_fed(line: Line) -> None:
    teacher = read(line.folder / "train" / "model.json")["preprocessing"]
    assert (teacher["image_size"], teacher["network_size"]) == (16, 24)
    assert (teacher["mean"], teacher["std"]) == ([MEAN], [STD])
    student = read(line.folder / "distill" / "model.json")["preprocessing"]
    assert student["image_size"] == 16
    assert "network_size" not in student
    assert student["mean"] != [MEAN]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_stage_judges_the_teacher_on_the_same_images(line: Line, split: str) -> None:
    logits, labels = plain_logits(line.folder / "train", split)
    top1 = 100.0 * float((logits.argmax(1) == labels).mean())
    assert top1 > 30
    if split == "validation":
        told = [read(line.folder / "train" / "model.json")["val_top1"]]
    else:
        rows = read(line.folder / "measure" / "scorecard.json")["rows"]
        told = [
            read(line.folder / "evaluate" / "metrics.json")["teacher"]["top1"],
            *(row["top1"] for row in rows if row["model"] == "teacher"),
        ]
        assert len(told) == 2
    assert told == pytest.approx([top1] * len(told), abs=1e-3)


def test_the_teachers_file_takes_the_data_s_images(line: Line) -> None:
    session = ort.InferenceSession(line.folder / "export" / "teacher.onnx")
    assert session.get_inputs()[0].shape[1:] == [16, 16, 1]
    data = load(profile().data)
    images = data.test.images.batch(np.arange(len(data.test.labels)))
    found = session.run(["logits"], {"input": images})[0]
    expected, _ = plain_logits(line.folder / "train", "test")
    assert np.abs(found - expected).max() < 1e-3 * expected.std()


def test_the_macs_are_those_at_its_own_size(line: Line, tmp_path: Path) -> None:
    judged = read(line.folder / "evaluate" / "metrics.json")
    network, _ = cards.load(line.folder / "train")
    assert judged["teacher"]["macs"] == macs(network, 24, 1) > macs(network, 16, 1)


def test_the_bundle_is_the_students_and_knows_nothing_of_it(line: Line) -> None:
    bundle = line.folder / "package" / "bundle"
    assert "network_size" not in read(bundle / "preprocessing.json")
    assert np.load(bundle / "golden" / "inputs.npy").shape[1:] == (16, 16, 1)


def test_a_smaller_teacher_and_a_plain_graph(tmp_path: Path) -> None:
    told = profile(
        teacher={"model": "test_resnet", "image_size": 10},
        train={"epochs": 1, "fraction": 0.2},
        distill={"epochs": 1, "fraction": 0.2, "baseline": False, "methods": [{"name": "kd"}]},
        export={"preprocessing": False},
    )
    # The parity that export demands compares the resize in the graph with that of training.
    Line(tmp_path, told).run("train", "distill", "export")
    report = read(tmp_path / "export" / "parity.json")["teacher"]
    assert max(check["max_relative_to_std"] for check in report["checks"]) < 1e-3


@pytest.mark.parametrize("augment", [{}, {"pad": 1}])
def test_remembered_features_and_augmented_views_reach_the_teacher_at_its_size(
    augment: dict[str, Any], tmp_path: Path
) -> None:
    # A vision transformer takes images of the size that it was built for, and no other.
    vit = {"model": "test_vit", "options": {"patch_size": 8}}
    own = {**vit, "image_size": 24, "mean": [0.2], "std": [0.6]}
    context = tiny.context(tmp_path / "teacher", tiny.settings("train", teacher=own, train={"epochs": 1}))
    train.check(context.settings)
    train.run(context)
    methods = [{"name": "msdcrd", "layers": [-1]}, {"name": "kd"}]
    settings = tiny.settings("distill", distill={"epochs": 1, "methods": methods, "augment": augment})
    distill.check(settings)
    student = tiny.context(tmp_path / "student", settings, inputs={"train": context.output})
    assert np.isfinite(distill.run(student)["val_top1"])


def test_a_student_of_another_size_than_the_data_is_refused_before_anything_runs() -> None:
    with raises(UsageError, what="student of 24 pixels") as caught:
        distill.check(tiny.settings("distill", student={"image_size": 24}))
    assert "data.image_size=24" in caught.value.hint
    distill.check(tiny.settings("distill", student={"image_size": 16}))


def test_constants_of_other_channels_are_found_before_anything_runs() -> None:
    with raises(ModelError, what="3 values of mean and std"):
        train.check(tiny.settings("train", teacher={"mean": [0.5] * 3, "std": [0.5] * 3}))


def test_a_teacher_s_own_size_that_leaves_nothing_of_the_image_is_found() -> None:
    told = {"model": "vgg11_bn", "image_size": 8}
    with raises(ModelError, what="of 8 pixels") as caught:
        train.check(tiny.settings("train", teacher=told))
    assert "its image_size" in caught.value.hint
