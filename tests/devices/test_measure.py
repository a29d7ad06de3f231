"""`kdpipe device check` and `measure`: a real sshd, a Python with numpy and ONNX Runtime, real bundles."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.command import document, environment, kdpipe
from tests.devices.place import PACKED, Place
from tests.ssh_server import device_python


def test_check_tells_what_is_there_and_leaves_nothing(place: Place) -> None:
    home = place.home()
    profile = place.profile({"board": place.device(home)})
    told = kdpipe("device", "check", "board", profile, "--json")
    assert told.returncode == 0, told.stderr
    (found,) = document(told)["devices"]
    assert found["numpy"]["version"] == np.__version__
    assert "version" in found["runtimes"]["onnxruntime"]
    assert "error" in found["runtimes"]["openvino"], "that package is not in the device's Python"
    assert [target["target"] for target in found["targets"] if target["can"]] == PACKED
    assert not home.exists()
    words = kdpipe("device", "check", "board", profile).stdout
    assert "onnxruntime-int8: can be measured" in words


def test_a_killed_measurement_goes_on_by_target_and_is_cached(place: Place) -> None:
    home = place.home()
    # As many images as no other test takes: the store is shared, and equal measurements are taken once.
    profile = place.profile({"board": place.device(home, targets=PACKED, accuracy_images=24)})
    command = [sys.executable, "-m", "pipeline", "device", "measure", "board", str(profile)]
    with subprocess.Popen(
        [*command, "--store", str(place.store)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment(),
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if "onnxruntime-fp32 done" in line:
                break
        child.kill()
    ran = place.run("device", "measure", "board", profile, "--json")
    assert ran.returncode == 0, ran.stderr
    assert "onnxruntime-fp32 was measured already" in ran.stderr
    assert "onnxruntime-int8 done" in ran.stderr
    (device,) = document(ran)["devices"]
    assert device["status"] == "ran"
    assert [row["target"] for row in device["rows"]] == PACKED
    for row in device["rows"]:
        (entry,) = row["latency"]
        raw = np.load(Path(device["path"]) / "samples" / f"{row['target']}-b1-t1.npy")
        assert raw.dtype == np.int64
        assert entry["n"] == len(raw) >= 20
        middle = np.sort(raw)[int(np.ceil(len(raw) / 2)) - 1]
        assert entry["p50_ms"] == pytest.approx(middle * 1e-6)
        assert row["golden"]["passed"]
        assert row["golden"]["of"] == row["target"]
        assert row["facts"]["version"]
    assert not list((home / "measured").iterdir())
    assert "/" not in json.dumps(device["facts"]["python"])
    again = place.run("device", "measure", "board", profile, "--json")
    assert document(again)["devices"][0]["status"] == "hit"
    assert document(again)["devices"][0]["rows"] == device["rows"]


def test_two_devices_on_one_board_and_one_that_does_not_answer(place: Place) -> None:
    home = place.home()
    devices = {
        "gone": {"url": "ssh://127.0.0.1:1", "config": str(place.server.config)},
        "one": place.device(home, targets=PACKED[:1], accuracy_images=31),
        "two": place.device(home, targets=PACKED, accuracy_images=31),
    }
    profile = place.profile(devices)
    ran = place.run("device", "measure", "gone", "one", "two", profile, "--json")
    assert ran.returncode == 4, ran.stderr
    assert "Connection refused" in document(ran)["error"]["why"]
    found = {device["name"]: device for device in document(ran)["devices"]}
    assert list(found) == ["gone", "one", "two"]
    assert [found[name]["status"] for name in found] == ["failed", "ran", "ran"]
    assert [row["target"] for row in found["one"]["rows"]] == PACKED[:1]
    assert [row["target"] for row in found["two"]["rows"]] == PACKED
    said = ran.stderr
    assert said.index("one: onnxruntime-fp32 done") < said.index("two: the bundle is there"), "in turns"
    assert not list((home / "measured").iterdir())
    seen = kdpipe("device", "check", "gone", "one", profile, "--json")
    assert seen.returncode == 4
    absent, there = document(seen)["devices"]
    assert absent["error"]["exit_code"] == 4
    assert [target["target"] for target in there["targets"] if target["can"]] == PACKED[:1]
    gone = place.run("device", "measure", "gone", profile)
    assert gone.returncode == 4
    assert "Connection refused" in gone.stderr
    assert "Traceback" not in gone.stderr


def test_a_device_that_fails_does_not_stop_the_others(place: Place) -> None:
    bare = device_python(place.folder / "no numpy")
    devices = {
        "bare": place.device(place.home()) | {"python": bare},
        "whole": place.device(place.home(), targets=["onnxruntime-fp32"], accuracy_images=0),
    }
    ran = place.run("device", "measure", "bare", "whole", place.profile(devices), "--json")
    assert ran.returncode == 4
    told = document(ran)
    assert "no numpy" in told["error"]["what"]
    found = {device["name"]: device for device in told["devices"]}
    assert found["bare"]["status"] == "failed"
    assert found["bare"]["error"]["exit_code"] == 4
    assert [row["target"] for row in found["whole"]["rows"]] == ["onnxruntime-fp32"]


def test_engines_are_built_on_the_device(place: Place) -> None:
    """TensorRT for RTX builds without a GPU: its engine comes back, and it is said why it was not timed."""
    pytest.importorskip("tensorrt_rtx")
    home = place.home()
    board = {"url": "local", "python": sys.executable, "folder": str(home), "targets": ["tensorrt_rtx-fp16"]}
    profile = place.profile({"board": board})
    ran = place.run("device", "measure", "board", profile, "--json")
    assert ran.returncode == 0, ran.stderr
    (device,) = document(ran)["devices"]
    (row,) = device["rows"]
    engine = Path(device["path"]) / "engines" / "tensorrt_rtx-fp16" / "model.engine"
    assert row["built"]
    assert hashlib.sha256(engine.read_bytes()).hexdigest() == row["sha256"] == row["built_there"]["sha256"]
    assert row["latency"] or "driver" in row["why_not"]
