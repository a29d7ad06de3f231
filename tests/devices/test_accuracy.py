"""Top-1 as it is on the device: the test images run there with the very file, judged here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.command import document
from tests.devices.lab import DeviceLab

TARGET = "onnxruntime-int8"


def measured(lab: DeviceLab, profile: Path, *more: str) -> dict[str, Any]:
    ran = lab.run("device", "measure", "board", profile, "--json", *more)
    assert ran.returncode == 0, ran.stderr
    (device,) = document(ran)["devices"]
    return {**device, "stderr": ran.stderr}


def test_top1_is_that_of_the_test_images_there_and_they_are_sent_once(lab: DeviceLab) -> None:
    home = lab.home()
    profile = lab.profile({"board": lab.device(home, targets=[TARGET])})
    first = measured(lab, profile, "--force")  # whatever other tests have measured before
    (row,) = first["rows"]
    on_host = lab.artefact(profile, "measure")
    labels = np.load(on_host / "predictions" / "labels.npy")
    there = np.load(Path(first["path"]) / "predictions" / f"{TARGET}.npy")
    assert row["accuracy_images"] == len(labels) == len(there)
    assert row["top1"] == pytest.approx(100 * (there == labels).mean(), abs=1e-3)
    low, high = row["top1_ci"]
    assert low < row["top1"] < high
    host = json.loads((on_host / "scorecard.json").read_text())["rows"]
    (same,) = [row for row in host if row["model"] == "student" and row["target"] == TARGET]
    for figure in ("top1", "agreement", "agreement_with_float"):
        assert row[figure] == pytest.approx(same[figure], abs=1.0), "the same file, on the same processor"
    assert row["agreement_with_host"] > 99
    assert row["accuracy_why_not"] is None
    again = measured(lab, profile, "--force")
    assert f"{len(labels)} test images are on the device (0 bytes sent)" in again["stderr"]
    assert again["rows"][0]["top1"] == row["top1"]


def test_an_image_that_changed_on_the_device_is_sent_anew(lab: DeviceLab) -> None:
    home = lab.home()
    profile = lab.profile({"board": lab.device(home, targets=[TARGET], accuracy_images=50)})
    first = measured(lab, profile)
    (row,) = first["rows"]
    assert row["accuracy_images"] == 50
    predictions = lab.artefact(profile, "measure") / "predictions"
    labels, on_host = (np.load(predictions / f"{name}.npy") for name in ("labels", f"student-{TARGET}"))
    spread = np.arange(50) * len(labels) // 50
    assert row["top1"] == pytest.approx(100 * (on_host == labels)[spread].mean(), abs=4)
    assert row["agreement_with_host"] >= 96
    (file,) = (home / "images").glob("*/images.npy")
    images = np.load(file)
    assert images.shape == (50, 16, 16, 1)
    np.save(file, images[:, ::-1])
    again = measured(lab, profile, "--force")
    assert again["rows"][0]["top1"] == first["rows"][0]["top1"]
    np.testing.assert_array_equal(np.load(file), images)


def test_only_a_few_sets_of_images_stay_on_the_device(lab: DeviceLab) -> None:
    home = lab.home()
    for count in (20, 21, 22, 23):
        device = lab.device(home, targets=[TARGET], accuracy_images=count)
        measured(lab, lab.profile({"board": device}))
    counts = sorted(len(np.load(file)) for file in (home / "images").glob("*/images.npy"))
    assert counts == [21, 22, 23]


def test_without_images_it_is_said_that_top1_was_not_measured(lab: DeviceLab) -> None:
    profile = lab.profile({"board": lab.device(lab.home(), targets=[TARGET], accuracy_images=0)})
    (row,) = measured(lab, profile)["rows"]
    assert row["latency"]
    assert row["top1"] is None
    assert row["accuracy_why_not"] == "accuracy_images of the device is 0"
    words = lab.run("device", "measure", "board", profile).stdout
    assert f"{TARGET}: top-1 not measured: accuracy_images of the device is 0" in words


def test_a_device_without_room_for_the_images_is_told(lab: DeviceLab) -> None:
    home = lab.home()
    profile = lab.profile({"board": lab.device(home, targets=[TARGET])})
    home.mkdir()
    (home / "images").write_text("in the way")  # nothing can be written there
    ran = lab.run("device", "measure", "board", profile, "--force")
    assert ran.returncode == 1
    assert "devices.board.accuracy_images" in ran.stderr
    assert "Traceback" not in ran.stderr
    shutil.rmtree(home)
