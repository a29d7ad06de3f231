"""TensorRT on a device that has `trtexec` but not its Python package; a stand-in speaks its command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.command import document
from tests.devices import trtexec
from tests.devices.adb import path_with
from tests.devices.lab import DeviceLab

TARGET = "tensorrt-fp16"


def profile(lab: DeviceLab, home: Path, **measure: Any) -> Path:
    board = {"url": "local", "python": lab.python, "folder": str(home), "targets": [TARGET]}
    settings = {**lab.settings, "measure": {**lab.settings["measure"], **measure}}
    settings["targets"] = [*settings["targets"], TARGET]
    return lab.profile({"board": board}, **settings)


def commands(folder: Path, word: str) -> list[str]:
    lines = (folder / "commands.txt").read_text().splitlines()
    return [line for line in lines if f"--{word}" in line]


@pytest.mark.parametrize(("version", "name"), [(101300, "10.13.0"), (110100, "11.1.0")])
def test_an_engine_is_built_timed_and_judged_by_trtexec(
    lab: DeviceLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, name: str
) -> None:
    folder = trtexec.stand_in(tmp_path / "bin", version)
    monkeypatch.setenv("PATH", path_with(folder))
    ran = lab.run("device", "measure", "board", profile(lab, tmp_path / "home"), "--json")
    assert ran.returncode == 0, ran.stderr
    (device,) = document(ran)["devices"]
    (row,) = device["rows"]
    assert row["built_there"]["built_by"] == f"trtexec {name}"
    assert row["clock"] == "trtexec"
    assert row["facts"]["version"] == name
    assert row["facts"]["transfers"] == "included"
    assert row["facts"]["cuda_graph"] is False
    raw = np.load(Path(device["path"]) / "samples" / f"{TARGET}-b1-t1.npy")
    assert row["latency"][0]["n"] == len(raw) >= 20
    assert raw.min() > 0.375e6, "the copies are part of the latency"
    assert row["golden"]["passed"], "the outputs came back"
    assert row["top1"] is not None
    assert row["agreement_with_float"] > 95
    (timed,) = commands(folder, "exportTimes")
    assert ("--includeDataTransfers" in timed) == (version >= 110000)
    assert ("--noCudaGraph" in timed) == (version >= 110000)
    assert (tmp_path / "home" / "timings" / f"trtexec-{name}.cache").is_file(), "for the next build"


@pytest.mark.parametrize("version", [101300, 110100])
def test_graphs_and_copies_are_as_the_profile_says(
    lab: DeviceLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    folder = trtexec.stand_in(tmp_path / "bin", version)
    monkeypatch.setenv("PATH", path_with(folder))
    path = profile(lab, tmp_path / "home", cuda_graph=True, transfers=False)
    ran = lab.run("device", "measure", "board", path, "--json")
    assert ran.returncode == 0, ran.stderr
    (row,) = document(ran)["devices"][0]["rows"]
    assert row["facts"]["transfers"] == "left out"
    assert row["facts"]["cuda_graph"] is True
    assert row["golden"]["passed"], "outputs are brought back all the same"
    (timed,) = commands(folder, "exportTimes")
    assert ("--noDataTransfers" in timed) == (version < 110000)
    assert ("--useCudaGraph" in timed) == (version < 110000)


def test_an_engine_for_larger_batches_is_given_none_that_is_smaller(
    lab: DeviceLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", path_with(trtexec.stand_in(tmp_path / "bin", 110100)))
    batches = {"batch_min": 4, "batch_opt": 4, "batch_max": 8}
    path = profile(lab, tmp_path / "home", batch_sizes=[4])
    ran = lab.run("device", "measure", "board", path, "--json", "--set", f"build={json.dumps(batches)}")
    assert ran.returncode == 0, ran.stderr
    (row,) = document(ran)["devices"][0]["rows"]
    assert row["accuracy_images"] % 8, "the last images are fewer than a batch"
    assert row["agreement_with_float"] > 95


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("build", "could not find any implementation for node Conv_0"),
        ("silent", "PASSED"),
        ("nan", "does not give its golden outputs"),
    ],
)
def test_what_trtexec_says_is_told(
    lab: DeviceLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, message: str
) -> None:
    folder = trtexec.stand_in(tmp_path / "bin", 101300, fault)
    monkeypatch.setenv("PATH", path_with(folder))
    ran = lab.run("device", "measure", "board", profile(lab, tmp_path / "home"), "--force")
    assert ran.returncode == 1
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
