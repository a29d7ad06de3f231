"""Kinds of data and methods that installed packages add to the profile."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.profile.loading import load
from tests.pipeline.profile_texts import BASE, only_fault, write

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


PLUGIN = '''
from typing import Literal

from stages.data.settings import DataSettings
from stages.methods.settings import MethodSettings


class Moons(DataSettings):
    """Two moons."""

    name: Literal["moons"]
    noise: float = 0.1


class Attention(MethodSettings):
    name: Literal["attention"]
    power: int = 2


class Stray:
    pass
'''


def install(folder: Path, entry_points: str) -> None:
    (folder / "kdpipe_moons.py").write_text(PLUGIN)
    info = folder / "kdpipe_moons-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kdpipe-moons\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "kdpipe_moons", raising=False)
    return folder


MINE = BASE.replace("digits", "moons\n  noise: 0.3") + "distill: {methods: [{name: kd}, {name: attention}]}\n"


def test_installed_kinds_and_methods_are_known(packages: Path, tmp_path: Path) -> None:
    install(
        packages,
        "[kdpipe.data]\nmoons = kdpipe_moons:Moons\nother = missing:Other\n"
        "[kdpipe.methods]\nattention = kdpipe_moons:Attention\n",
    )
    loaded = load(write(MINE), memo_folder=tmp_path / "memo")
    assert loaded.value("data.noise") == 0.3
    assert loaded.value("distill.methods.1.power") == 2
    settings = loaded.settings(["data", "distill"])
    assert type(settings.data).__name__ == "Moons"
    assert type(settings.distill.methods[0]).__name__ == "KdSettings"
    assert not (tmp_path / "memo").exists()  # what a package adds is not remembered
    place, message, _ = only_fault(MINE.replace("noise: 0.3", "noise: x"))
    assert (place, message) == ("p.yaml:3:10", "data.noise: found 'x', expected a number")
    assert only_fault(MINE.replace("moons\n  noise: 0.3", "mons"))[2] == "did you mean 'moons'?"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("kdpipe_moons:Stray", "not a subclass of stages.data.settings.DataSettings"),
        ("kdpipe_moons:Attention", "not a subclass of stages.data.settings.DataSettings"),
        ("no_such_module:Moons", "ModuleNotFoundError"),
        ("kdpipe_moons:Gone", "AttributeError"),
    ],
)
def test_a_broken_plugin_is_one_fault(packages: Path, value: str, words: str) -> None:
    install(packages, f"[kdpipe.data]\nmoons = {value}\n")
    place, message, _ = only_fault(BASE.replace("digits", "moons"))
    assert place == "p.yaml:2:9"
    assert "kdpipe-moons 1.2" in message
    assert words in message
