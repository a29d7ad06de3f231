"""`kdpipe pick` names the target for each device that was measured, by what was measured there."""

from __future__ import annotations

import json
from pathlib import Path

from tests.command import document
from tests.devices.place import Place


def test_pick_names_the_target_of_a_measured_device_and_its_front(place: Place) -> None:
    profile = place.profile({"board": place.device(place.home(), targets=["onnxruntime-int8"])})
    before = document(place.run("pick", profile, "--json"))["devices"]
    measured = place.run("device", "measure", "board", profile, "--json")
    (device,) = document(measured)["devices"]
    scorecard = json.loads((Path(device["path"]) / "scorecard.json").read_text(encoding="utf-8"))
    found = document(place.run("pick", profile, "--json"))["devices"]
    assert len(found) >= len(before)
    (row,) = scorecard["rows"]
    (entry,) = [one for one in found if [point["target"] for point in one["front"]] == [row["target"]]]
    assert scorecard["device"]["machine"]["cpu"] in entry["device"]
    assert entry["front"][0]["p50_ms"] == row["latency"][0]["p50_ms"]
    assert entry["front"][0]["top1"] == row["top1"]
    assert entry["target"] == "onnxruntime-int8"
    words = place.run("pick", profile).stdout
    assert f"on the device {entry['device']}:" in words
    assert f"  ship: onnxruntime-int8: {entry['reason']}" in words
    # Other files were not measured there.
    other = document(place.run("pick", profile, "--json", "--set", "measure.resamples=150"))
    assert other["devices"] == []
