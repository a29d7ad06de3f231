"""The program on the device, called as the link calls it, and files on their way to it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.devices.files import deliver, local_files
from pipeline.devices.link import ANSWER, Link
from pipeline.errors import StageError
from stages.devices.program import program
from tests.traps import TRAPS, lay_traps

LONG_AGO = 1_000_000_000


@pytest.fixture
def pyz(tmp_path: Path) -> Path:
    file = tmp_path / "program-new.pyz"
    file.write_bytes(program())
    return file


def call(pyz: Path, verb: str, **request: Any) -> subprocess.Popen[bytes]:
    request_file = pyz.with_suffix(".json")
    request_file.write_text(json.dumps({"folder": str(pyz.parent), **request}), encoding="utf-8")
    with request_file.open("rb") as stream:
        return subprocess.Popen(
            [sys.executable, str(pyz), verb], stdin=stream, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )


def answer(child: subprocess.Popen[bytes]) -> dict[str, Any]:
    out, _ = child.communicate()
    assert child.returncode == 0, "it goes on to its end"
    content: dict[str, Any] = json.loads(out.rpartition(ANSWER)[2])
    return content


def test_a_measurement_outlives_the_link_and_stays_the_only_one(pyz: Path) -> None:
    home = pyz.parent
    images = home / "bundle" / "golden" / "inputs.npy"
    images.parent.mkdir(parents=True)
    os.mkfifo(images)  # the process that measures waits for its images
    request: dict[str, Any] = {"target": "onnxruntime-fp32", "place": "measured/x/onnxruntime-fp32"}
    request |= {"bundle": "bundle", "onnx": None, "images": None, "timings": "timings"}
    child = call(pyz, "measure", **request)
    with images.open("wb"):  # opens once there is a reader
        child.send_signal(signal.SIGHUP)
    answered = answer(child)
    assert "ended without a result" in answered["fault"]["what"], "no image came"

    child = call(pyz, "measure", **request)
    with (home / "measured/x/onnxruntime-fp32.lock").open("ab") as lock:
        with images.open("wb"):
            child.kill()
            child.communicate()
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(lock, fcntl.LOCK_EX)  # free when the process that measured has ended


def test_what_was_abandoned_long_ago_goes(pyz: Path) -> None:
    home = pyz.parent
    for folder in ("received", "measured/old", "measured/new", "releases/.half.17", "releases/whole"):
        (home / folder).mkdir(parents=True)
    for file in ("received/old.part", "received/new.part", "program-old.pyz", "program-other.pyz"):
        (home / file).write_bytes(b"x")
    for name in ("received/old.part", "program-old.pyz", "measured/old", "releases/.half.17", pyz.name):
        os.utime(home / name, (LONG_AGO, LONG_AGO))
    os.utime(home / "releases" / "whole", (LONG_AGO, LONG_AGO))
    assert answer(call(pyz, "have", files={})) == {"present": [], "partial": {}}
    left = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.suffix != ".json"}
    remaining = {"received", "received/new.part", "measured", "measured/new", "releases", "releases/whole"}
    assert left == remaining | {pyz.name, "program-other.pyz"}


def test_a_fault_of_the_disk_is_told_and_not_taken_for_damage(tmp_path: Path) -> None:
    sources, home = tmp_path / "sources", tmp_path / "home"
    sources.mkdir()
    home.mkdir()
    (sources / "model.onnx").write_bytes(b"x" * 100)
    (home / "received").write_text("in the way")  # nothing can be written there
    answered: list[str] = []
    settings = {"url": "local", "python": sys.executable, "folder": str(home)}
    with Link("board", settings, program()) as link, pytest.raises(StageError) as caught:
        deliver(link, local_files(sources), "releases/x", answered.append)
    assert "cannot read or write" in caught.value.what
    assert answered == []


def _python(version: str) -> str:
    """The Python of that version on this machine, or "" if it has none that starts."""
    path = shutil.which(f"python{version}")
    if not path or subprocess.run([path, "--version"], capture_output=True, check=False).returncode:
        return ""
    return path


@pytest.mark.parametrize("python", [sys.executable, "3.10"], ids=["this Python", "Python 3.10"])
def test_nothing_in_the_home_folder_is_imported(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = _python(python) if python == "3.10" else python
    if not python:
        pytest.skip("this machine has no Python 3.10")
    monkeypatch.setenv("HOME", str(lay_traps(tmp_path / "home", *TRAPS, "hashlib.py", "tensorrt.py")))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    settings = {"url": "local", "python": python, "folder": "kdpipe"}
    with Link("board", settings, program()) as link:
        link.connect()
        answered = link.facts()
    assert "of the working folder" not in json.dumps(answered)
    if python == sys.executable:
        assert answered["numpy"]["version"] == np.__version__
