"""Profiles that are edited while their run goes on: the run keeps to what it has read."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.profile.loading import load
from tests.pipeline.command_line import PROFILE, PROFILE_TEXT, SMALL, call, document, environment
from tests.pipeline.profile_texts import BASE, write

BASE_FILE = "base.yaml"
EXTENDING = "extends: base.yaml\nname: small\n"


def write_garbage(file: Path) -> None:
    file.write_text("data: [")


def write_unknown_key(file: Path) -> None:
    file.write_text("data: {name: digits}\nepochs: 3\n")


@pytest.fixture
def chained(home: Path) -> Path:
    """Make a folder with a profile that extends another one."""
    (home / BASE_FILE).write_text(PROFILE_TEXT)
    (home / PROFILE).write_text(EXTENDING)
    return home


def run_while(home: Path, edit: Callable[[], object], *words: str) -> subprocess.CompletedProcess[str]:
    """Start `kdpipe run`, edit while the first stage is running, and let the run go on."""
    process = subprocess.Popen(
        [sys.executable, *SMALL, "run", PROFILE, *words],
        cwd=home,
        env=environment(SMALL_TROUBLE="wait"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list((home / ".kdpipe").rglob("checkpoint")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    edit()
    (home / "go").touch()
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def is_cached(home: Path) -> bool:
    """Whether a plan of the profile needs no validation: whether a memo of this content is in the store."""
    plan = call(home, "plan", PROFILE, "--check", program=("-X", "importtime", *SMALL))
    assert plan.returncode == 0, "the profile that was run is up to date"
    assert "click" in plan.stderr
    return "pydantic" not in plan.stderr


@pytest.mark.parametrize("name", [PROFILE, BASE_FILE])
@pytest.mark.parametrize("edit", [write_garbage, write_unknown_key, Path.unlink])
def test_a_profile_that_becomes_invalid_does_not_end_its_run(
    chained: Path, name: str, edit: Callable[[Path], None]
) -> None:
    before = (chained / name).read_text()
    done = run_while(chained, lambda: edit(chained / name))
    assert done.returncode == 0, done.stderr
    assert "student  onnxruntime-int8" in done.stdout
    assert call(chained, "plan", PROFILE, program=SMALL).returncode == 2
    (chained / name).write_text(before)
    assert is_cached(chained)


@pytest.mark.parametrize("name", [PROFILE, BASE_FILE])
def test_a_profile_that_becomes_another_one_is_planned_as_that(chained: Path, name: str) -> None:
    before = (chained / name).read_text()
    done = run_while(chained, lambda: (chained / name).write_text(before + "train: {epochs: 3}\n"), "--json")
    assert done.returncode == 0, done.stderr
    assert document(done)["stages"][0]["metrics"]["epochs"] == 20, "as it was when the run began"
    plan = document(call(chained, "plan", PROFILE, "--json", program=SMALL))
    assert plan["stages"][0]["reasons"] == [{"kind": "profile", "key": "train.epochs", "old": 20, "new": 3}]
    (chained / name).write_text(before)
    assert is_cached(chained)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_more_overrides_apply_to_what_was_read(tmp_path: Path) -> None:
    write(BASE + "train: {epochs: 3}\n", "sub/base.yaml")
    loaded = load(write("extends: sub/base\n"), ["seed=2"], tmp_path / "memo")
    expected = load("p.yaml", ["seed=2", "distill.epochs=5"])
    Path("p.yaml").unlink()
    Path("sub/base.yaml").write_text("garbage: [")
    Path("sub/base").write_text("garbage: [")  # would be read before base.yaml
    for _ in range(2):  # read, then recalled
        more = loaded.with_overrides(["distill.epochs=5"], tmp_path / "memo")
        assert more == expected
        more.remember(tmp_path / "memo")
    assert more.memo is None
