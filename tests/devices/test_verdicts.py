"""Verdicts on the host's figures keep no device from being measured, and no good target from one."""

from __future__ import annotations

from tests.command import document
from tests.devices.place import PACKED, Place

FP32, INT8 = PACKED


def test_a_gate_missed_on_the_host_is_told_after_devices_were_measured(place: Place) -> None:
    gates = [{"metric": "latency_p50_ms", "max": 0.000001}]
    device = place.device(place.home(), targets=[FP32], accuracy_images=0)
    ran = place.run("device", "measure", "board", place.profile({"board": device}, gates=gates), "--json")
    assert ran.returncode == 3, ran.stderr
    (found,) = document(ran)["devices"]
    assert found["rows"][0]["latency"]
    assert "latency_p50_ms" in document(ran)["error"]["why"]


def test_only_a_gate_that_the_default_target_misses_keeps_a_bundle_from_being_shipped(place: Place) -> None:
    home = place.home()
    devices = {"board": place.device(home)}
    every = place.profile(devices, gates=[{"metric": "latency_p50_ms", "max": 0.000001}])
    refused = place.run("ship", "board", every)
    assert refused.returncode == 3
    assert "missed" in refused.stderr
    assert not (home / "current").exists()
    one = place.profile(devices, gates=[{"metric": "latency_p50_ms", "max": 0.000001, "target": INT8}])
    shipped = place.run("ship", "board", one, "--json")
    assert shipped.returncode == 0, shipped.stderr
    assert "1 gate was missed: the bundle is shipped nevertheless" in shipped.stderr
    assert (home / "current").readlink().name == document(shipped)["current"]


def test_a_target_that_the_host_cannot_build_does_not_keep_the_others_from_devices(place: Place) -> None:
    home = place.home()
    targets = [*PACKED, {"name": "tensorrt-fp16", "required": True}]
    device = place.device(home, targets=[FP32], accuracy_images=0)
    profile = place.profile({"board": device}, targets=targets)
    ran = place.run("device", "measure", "board", profile, "--json")
    assert ran.returncode == 4, ran.stderr
    assert "tensorrt-fp16" in document(ran)["error"]["what"]
    (found,) = document(ran)["devices"]
    assert found["rows"][0]["latency"]
    shipped = place.run("ship", "board", profile, "--json")
    assert shipped.returncode == 0, shipped.stderr
    assert "tensorrt-fp16" in shipped.stderr
    assert (home / "current").exists()
