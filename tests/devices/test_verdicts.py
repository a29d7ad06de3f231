"""Verdicts on the host's figures keep no device from being measured, and no good target from one."""

from __future__ import annotations

from tests.command import document
from tests.devices.lab import PACKED, DeviceLab

FP32, INT8 = PACKED


def test_a_gate_missed_on_the_host_is_told_after_devices_were_measured(lab: DeviceLab) -> None:
    gates = [{"metric": "latency_p50_ms", "max": 0.000001}]
    device = lab.device(lab.home(), targets=[FP32], accuracy_images=0)
    ran = lab.run("device", "measure", "board", lab.profile({"board": device}, gates=gates), "--json")
    assert ran.returncode == 3, ran.stderr
    (device_entry,) = document(ran)["devices"]
    assert device_entry["rows"][0]["latency"]
    assert "latency_p50_ms" in document(ran)["error"]["why"]


def test_only_a_gate_that_the_default_target_misses_keeps_a_bundle_from_being_shipped(lab: DeviceLab) -> None:
    home = lab.home()
    devices = {"board": lab.device(home)}
    every = lab.profile(devices, gates=[{"metric": "latency_p50_ms", "max": 0.000001}])
    refused = lab.run("ship", "board", every)
    assert refused.returncode == 3
    assert "missed" in refused.stderr
    assert not (home / "current").exists()
    of_one_target = lab.profile(
        devices, gates=[{"metric": "latency_p50_ms", "max": 0.000001, "target": INT8}]
    )
    shipped = lab.run("ship", "board", of_one_target, "--json")
    assert shipped.returncode == 0, shipped.stderr
    assert "1 gate was missed: the bundle is shipped nevertheless" in shipped.stderr
    assert (home / "current").readlink().name == document(shipped)["current"]


def test_a_target_that_the_host_cannot_build_does_not_keep_the_others_from_devices(lab: DeviceLab) -> None:
    home = lab.home()
    targets = [*PACKED, {"name": "tensorrt-fp16", "required": True}]
    device = lab.device(home, targets=[FP32], accuracy_images=0)
    profile = lab.profile({"board": device}, targets=targets)
    ran = lab.run("device", "measure", "board", profile, "--json")
    assert ran.returncode == 4, ran.stderr
    assert "tensorrt-fp16" in document(ran)["error"]["what"]
    (device_entry,) = document(ran)["devices"]
    assert device_entry["rows"][0]["latency"]
    shipped = lab.run("ship", "board", profile, "--json")
    assert shipped.returncode == 0, shipped.stderr
    assert "tensorrt-fp16" in shipped.stderr
    assert (home / "current").exists()
