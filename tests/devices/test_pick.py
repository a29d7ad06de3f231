"""`kdpipe pick` names the target for each device that was measured, by what was measured there."""

from __future__ import annotations

import json
from pathlib import Path

from tests.command import document
from tests.devices.lab import PACKED, DeviceLab

IMAGES = 100_000
"""All, in words that no other test uses: the store is shared, and equal measurements are taken once."""


def test_pick_names_the_target_of_each_measured_device_and_its_front(lab: DeviceLab) -> None:
    fp32, int8 = PACKED
    home = lab.home()
    devices = {
        "board": lab.device(home, targets=[int8], accuracy_images=IMAGES),
        "other": lab.device(home, targets=[fp32], accuracy_images=IMAGES),
    }
    profile = lab.profile(devices)
    measured = lab.run("device", "measure", *devices, profile, "--json")
    assert measured.returncode == 0, measured.stderr
    device, other = document(measured)["devices"]
    assert (device["status"], other["status"]) == ("ran", "ran"), "the newest of their kind"
    scorecard = json.loads((Path(device["path"]) / "scorecard.json").read_text(encoding="utf-8"))
    by_targets = {
        tuple(device["targets"]): device for device in document(lab.run("pick", profile, "--json"))["devices"]
    }
    assert by_targets[(fp32,)]["target"] == fp32, "another device of the same board"
    (row,) = scorecard["rows"]
    entry = by_targets[(int8,)]
    assert scorecard["device"]["machine"]["cpu"] in entry["device"]
    assert (scorecard["device"]["board"] or "") in entry["device"]
    assert entry["front"][0]["p50_ms"] == row["latency"][0]["p50_ms"]
    assert entry["front"][0]["top1"] == row["top1"]
    words = lab.run("pick", profile).stdout
    assert f"on the device {entry['device']} ({int8}):" in words
    assert f"  ship: {int8}: {entry['reason']}" in words
    # Other files were not measured there.
    other_files = document(lab.run("pick", profile, "--json", "--set", "measure.resamples=150"))
    assert other_files["devices"] == []
