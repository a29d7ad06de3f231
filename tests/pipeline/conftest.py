"""A working folder with a profile, and a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.store.store import Store
from tests.pipeline.command_line import PROFILE, PROFILE_TEXT


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / PROFILE).write_text(PROFILE_TEXT)
    return tmp_path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "deep" / "store")


@pytest.fixture
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
