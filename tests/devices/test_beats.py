"""Measurements on a device that are slow, hang, or whose link breaks: judged by their beats on both sides."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.devices.link import Link
from pipeline.errors import StageError
from pipeline.heartbeat import Beat, Silence
from stages.devices.program import program
from stages.measuring.settings import MeasureSettings
from tests.devices.test_there import answer, call
from tests.errors import raises
from tests.stages.runtimes.networks import exported

QUICK = MeasureSettings(
    warmup_s=0.02, warmup_max_s=0.1, duration_s=0.1, max_duration_s=0.2, min_samples=10, accuracy_batch=8
).model_dump(mode="json")

PLACE = "measured/x/onnxruntime-fp32"

REQUEST: dict[str, Any] = {
    "target": "onnxruntime-fp32",
    "runtime": "onnxruntime",
    "precision": "fp32",
    "place": PLACE,
    "bundle": "bundle",
    "onnx": None,
    "images": "images.npy",
    "timings": "timings",
    "batch_min": 1,
    "batch_max": 1024,
    "image_shape": [24, 24, 3],
    "input": "uint8_nhwc",
    "mean": [0.45] * 3,
    "std": [0.25] * 3,
    "settings": QUICK,
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A device's folder with a bundle of one target, and test images."""
    (tmp_path / "bundle" / "golden").mkdir(parents=True)
    (tmp_path / "bundle" / "models" / "onnxruntime-fp32").mkdir(parents=True)
    shutil.copyfile(exported("cnn"), tmp_path / "bundle" / "models" / "onnxruntime-fp32" / "model.onnx")
    np.save(tmp_path / "bundle" / "golden" / "inputs.npy", np.zeros((3, 24, 24, 3), np.uint8))
    np.save(tmp_path / "images.npy", np.zeros((20, 24, 24, 3), np.uint8))
    (tmp_path / "program-new.pyz").write_bytes(program())
    return tmp_path


def settings(home: Path) -> Mapping[str, Any]:
    return {"url": "local", "python": sys.executable, "folder": str(home)}


def test_the_beats_of_a_measurement_come_to_the_host(home: Path) -> None:
    slow = MeasureSettings(**{**QUICK, "duration_s": 3.0, "max_duration_s": 3.0}).model_dump(mode="json")
    beats: list[Beat] = []
    with Link("board", settings(home), program()) as link:
        result = link.call("measure", on_beat=beats.append, **{**REQUEST, "settings": slow})
    assert {"result.json", "predictions.npy", "log.txt"} <= set(result["files"])
    assert "sampling" in {beat.phase for beat in beats}
    assert not list((home / "measured/x").glob("*.beats"))


def hang(home: Path) -> None:
    """From now on, what measures waits for images that do not come."""
    file = home / "bundle" / "golden" / "inputs.npy"
    file.unlink()
    os.mkfifo(file)


def is_free(home: Path) -> bool:
    with (home / f"{PLACE}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # returns once the process that measures has ended
    return True


def test_a_measurement_that_hangs_is_ended_on_the_device(home: Path) -> None:
    hang(home)
    result = answer(call(home / "program-new.pyz", "measure", **REQUEST, silence={"step_s": 4, "load_s": 8}))
    assert result["fault"]["what"] == "Measuring onnxruntime-fp32 hung on the device"
    assert result["fault"]["why"].startswith("loading the target: no progress and no CPU time used for")
    assert is_free(home)


def test_a_measurement_that_hangs_after_its_link_broke_is_ended_by_the_next_call(home: Path) -> None:
    hang(home)
    first = call(home / "program-new.pyz", "measure", **REQUEST)
    beats = home / f"{PLACE}.beats"
    while not (beats.is_file() and "loading" in beats.read_text()):
        time.sleep(0.1)
    first.kill()
    first.communicate()
    result = answer(call(home / "program-new.pyz", "measure", **REQUEST, silence={"step_s": 4, "load_s": 8}))
    assert result["fault"]["what"] == "Measuring onnxruntime-fp32 hung on the device"
    assert is_free(home)


SILENT = """
import json, os, sys, time
sys.stdin.buffer.read()
beat = {"phase": "accuracy", "done": 3, "total": 9, "unit": "images"}
print("\\n\\x1ekdpipe-beat " + json.dumps({"beat": beat}), flush=True)
time.sleep(3600)
"""


def test_a_device_that_falls_silent_is_told_with_what_it_was_doing(home: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("__main__.py", SILENT)
    beats: list[Beat] = []
    link = Link("board", settings(home), packed.getvalue())
    with link, raises(StageError, what="The device fell silent") as caught:
        link.call("measure", on_beat=beats.append, silence=Silence(3.0, 60.0), **REQUEST)
    assert beats == [Beat("accuracy", 3, 9, "images")]
    assert "accuracy, 3 of 9 images: silent for" in caught.value.why
    assert "run the same command again" in caught.value.hint
