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
from tests.devices.lab import PACKED, DeviceLab
from tests.ssh_server import device_python


def test_check_tells_what_is_there_and_leaves_nothing(lab: DeviceLab) -> None:
    home = lab.home()
    profile = lab.profile({"board": lab.device(home)})
    checked = kdpipe("device", "check", "board", profile, "--json")
    assert checked.returncode == 0, checked.stderr
    (facts,) = document(checked)["devices"]
    assert facts["numpy"]["version"] == np.__version__
    assert "version" in facts["runtimes"]["onnxruntime"]
    assert "error" in facts["runtimes"]["openvino"], "that package is not in the device's Python"
    assert [target["target"] for target in facts["targets"] if target["can"]] == PACKED
    assert not home.exists()
    words = kdpipe("device", "check", "board", profile).stdout
    assert "onnxruntime-int8: can be measured" in words


def test_a_killed_measurement_goes_on_by_target_and_is_cached(lab: DeviceLab) -> None:
    home = lab.home()
    # As many images as no other test takes: the store is shared, and equal measurements are taken once.
    profile = lab.profile({"board": lab.device(home, targets=PACKED, accuracy_images=24)})
    command = [sys.executable, "-m", "pipeline", "device", "measure", "board", str(profile)]
    with subprocess.Popen(
        [*command, "--store", str(lab.store)],
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
    ran = lab.run("device", "measure", "board", profile, "--json")
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
    again = lab.run("device", "measure", "board", profile, "--json")
    assert document(again)["devices"][0]["status"] == "hit"
    assert document(again)["devices"][0]["rows"] == device["rows"]


def test_two_devices_on_one_board_and_one_that_does_not_answer(lab: DeviceLab) -> None:
    home = lab.home()
    devices = {
        "gone": {"url": "ssh://127.0.0.1:1", "config": str(lab.server.config)},
        "one": lab.device(home, targets=PACKED[:1], accuracy_images=31),
        "two": lab.device(home, targets=PACKED, accuracy_images=31),
    }
    profile = lab.profile(devices)
    ran = lab.run("device", "measure", "gone", "one", "two", profile, "--json")
    assert ran.returncode == 4, ran.stderr
    assert "Connection refused" in document(ran)["error"]["why"]
    devices_by_name = {device["name"]: device for device in document(ran)["devices"]}
    assert list(devices_by_name) == ["gone", "one", "two"]
    assert [devices_by_name[name]["status"] for name in devices_by_name] == ["failed", "ran", "ran"]
    assert [row["target"] for row in devices_by_name["one"]["rows"]] == PACKED[:1]
    assert [row["target"] for row in devices_by_name["two"]["rows"]] == PACKED
    log = ran.stderr
    assert log.index("one: onnxruntime-fp32 done") < log.index("two: the bundle is on the device"), "in turns"
    assert not list((home / "measured").iterdir())
    seen = kdpipe("device", "check", "gone", "one", profile, "--json")
    assert seen.returncode == 4
    absent, there = document(seen)["devices"]
    assert absent["error"]["exit_code"] == 4
    assert [target["target"] for target in there["targets"] if target["can"]] == PACKED[:1]
    gone = lab.run("device", "measure", "gone", profile)
    assert gone.returncode == 4
    assert "Connection refused" in gone.stderr
    assert "Traceback" not in gone.stderr


def test_a_device_that_fails_does_not_stop_the_others(lab: DeviceLab) -> None:
    bare = device_python(lab.folder / "no numpy")
    devices = {
        "bare": lab.device(lab.home()) | {"python": bare},
        "whole": lab.device(lab.home(), targets=["onnxruntime-fp32"], accuracy_images=0),
    }
    ran = lab.run("device", "measure", "bare", "whole", lab.profile(devices), "--json")
    assert ran.returncode == 4
    report = document(ran)
    assert "no numpy" in report["error"]["what"]
    devices_by_name = {device["name"]: device for device in report["devices"]}
    assert devices_by_name["bare"]["status"] == "failed"
    assert devices_by_name["bare"]["error"]["exit_code"] == 4
    assert [row["target"] for row in devices_by_name["whole"]["rows"]] == ["onnxruntime-fp32"]


def test_engines_are_built_on_the_device(lab: DeviceLab) -> None:
    """TensorRT for RTX builds without a GPU: its engine comes back, and it is said why it was not timed."""
    pytest.importorskip("tensorrt_rtx")
    home = lab.home()
    board = {"url": "local", "python": sys.executable, "folder": str(home), "targets": ["tensorrt_rtx-fp16"]}
    profile = lab.profile({"board": board})
    ran = lab.run("device", "measure", "board", profile, "--json")
    assert ran.returncode == 0, ran.stderr
    (device,) = document(ran)["devices"]
    (row,) = device["rows"]
    engine = Path(device["path"]) / "engines" / "tensorrt_rtx-fp16" / "model.engine"
    assert row["built"]
    assert hashlib.sha256(engine.read_bytes()).hexdigest() == row["sha256"] == row["built_there"]["sha256"]
    assert row["latency"] or "driver" in row["why_not"]
