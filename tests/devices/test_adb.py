"""Devices over adb, with a stand-in for the program: its words, its exit codes, its faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import document, kdpipe
from tests.devices import adb
from tests.devices.lab import PACKED, DeviceLab


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(the file of the device's state, the device's /data/local/tmp)"""
    folder, state, home = adb.stand_in(tmp_path)
    monkeypatch.setenv("PATH", adb.path_with(folder))
    return state, home


def test_check_measure_and_ship_over_adb(lab: DeviceLab, board: tuple[Path, Path]) -> None:
    _, home = board
    profile = lab.profile({"phone": {"url": "adb://BOARD01", "python": lab.python, "targets": PACKED}})
    checked = kdpipe("device", "check", "phone", profile, "--json")
    assert checked.returncode == 0, checked.stderr
    (facts,) = document(checked)["devices"]
    assert facts["folder"]["path"] == str(home / "kdpipe"), (
        "not below the shell's HOME, which is no place to write"
    )
    assert not (home / "kdpipe").exists(), "check leaves nothing"
    ran = lab.run("device", "measure", "phone", profile, "--json")
    assert ran.returncode == 0, ran.stderr
    rows = document(ran)["devices"][0]["rows"]
    assert [row["target"] for row in rows] == PACKED
    assert all(row["golden"]["passed"] and row["top1"] is not None for row in rows)
    shipped = lab.run("ship", "phone", profile, "--json")
    assert shipped.returncode == 0, shipped.stderr
    assert (home / "kdpipe" / "current").readlink().name == document(shipped)["current"]
    assert (home / "kdpipe" / "current" / "predict.py").is_file()


def test_results_that_arrive_damaged_are_not_taken(lab: DeviceLab, board: tuple[Path, Path]) -> None:
    state, _ = board
    settings = {"url": "adb://BOARD01", "python": lab.python, "targets": PACKED[:1], "accuracy_images": 10}
    profile = lab.profile({"phone": settings})
    state.write_text("noisy")
    refused = lab.run("device", "measure", "phone", profile)
    assert refused.returncode == 1
    assert "arrived damaged from the device" in refused.stderr
    state.write_text("device")
    ran = lab.run("device", "measure", "phone", profile)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("gone", "adb devices"),
        ("unauthorized", "allow USB debugging"),
        ("dies", "answer is missing"),
        ("cut", "the link broke"),
    ],
)
def test_a_device_that_does_not_answer_is_told(
    lab: DeviceLab, board: tuple[Path, Path], state: str, message: str
) -> None:
    board[0].write_text(state)
    profile = lab.profile({"phone": {"url": "adb://BOARD01", "python": lab.python}})
    checked = kdpipe("device", "check", "phone", profile)
    assert checked.returncode == 4
    assert message in checked.stderr
    assert "Traceback" not in checked.stderr


def test_a_program_that_did_not_arrive_is_sent_again(lab: DeviceLab, board: tuple[Path, Path]) -> None:
    state, home = board
    state.write_text("dies once")
    profile = lab.profile({"phone": {"url": "adb://BOARD01", "python": lab.python}})
    listed = lab.run("ship", "phone", profile, "--list")
    assert listed.returncode == 0, listed.stderr
    assert "nothing was shipped there yet" in listed.stdout
    assert list((home / "kdpipe").glob("program-*.pyz"))


def test_a_device_without_python_is_told_what_it_needs(lab: DeviceLab, board: tuple[Path, Path]) -> None:
    profile = lab.profile({"phone": {"url": "adb://BOARD01", "python": "python3-of-none"}})
    checked = kdpipe("device", "check", "phone", profile)
    assert checked.returncode == 4
    assert "no such Python" in checked.stderr
    for way in ("/data/local/tmp", "Termux", "adb root", "devices.phone.python"):
        assert way in checked.stderr


def test_without_adb_it_is_told_what_to_install(
    lab: DeviceLab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    profile = lab.profile({"phone": {"url": "adb://BOARD01"}})
    checked = kdpipe("device", "check", "phone", profile)
    assert checked.returncode == 4
    assert "platform tools" in checked.stderr
