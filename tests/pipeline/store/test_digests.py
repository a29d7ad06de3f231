"""Cached digests of files."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.store.digests import DigestMemo


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """Return a file that has not changed for longer than a coarse clock's tick."""
    path = tmp_path / "data.bin"
    path.write_bytes(b"content")
    time.sleep(2.1)
    return path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.long
def test_a_remembered_digest_is_not_read_again_until_the_file_changes(tmp_path: Path, old_file: Path) -> None:
    memo = DigestMemo(tmp_path / "digests.sqlite")
    assert memo.of(old_file) == sha256(b"content")
    memo.save()
    with closing(sqlite3.connect(tmp_path / "digests.sqlite")) as database, database:
        database.execute("UPDATE digests SET sha256 = 'remembered'")
    assert DigestMemo(tmp_path / "digests.sqlite").of(old_file) == "remembered"

    before = old_file.stat()
    old_file.write_bytes(b"CONTENT")  # the same size
    os.utime(old_file, ns=(before.st_atime_ns, before.st_mtime_ns))  # and the same mtime
    assert DigestMemo(tmp_path / "digests.sqlite").of(old_file) == sha256(b"CONTENT")


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "young.bin"
    path.write_bytes(b"content")
    memo = DigestMemo(tmp_path / "digests.sqlite")
    assert memo.of(path) == sha256(b"content")
    memo.save()
    assert not (tmp_path / "digests.sqlite").exists()


@pytest.mark.long
def test_a_damaged_memo_costs_time_and_nothing_else(tmp_path: Path, old_file: Path) -> None:
    (tmp_path / "digests.sqlite").write_bytes(b"this is no database" * 100)
    memo = DigestMemo(tmp_path / "digests.sqlite")
    assert memo.of(old_file) == sha256(b"content")
    memo.save()
    with closing(sqlite3.connect(tmp_path / "digests.sqlite")) as database:
        assert database.execute("SELECT count(*) FROM digests").fetchone() == (1,)


def test_names_that_are_no_text_are_remembered_too(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff%20?#")
    folder.mkdir()
    path = folder / os.fsdecode(b"\xfe.bin")
    path.write_bytes(b"content")
    memo = DigestMemo(folder / "digests.sqlite")
    memo.remember(path, "told")
    memo.save()
    assert DigestMemo(memo.path).of(path) == "told"


def test_forgets_folders_that_are_gone(tmp_path: Path) -> None:
    memo = DigestMemo(tmp_path / "digests.sqlite")
    for name in ("stays", "goes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"content")
        memo.remember(tmp_path / name / "file", name)
    memo.save()
    (tmp_path / "goes" / "file").unlink()
    (tmp_path / "goes").rmdir()
    memo.prune()
    with closing(sqlite3.connect(memo.path)) as database:
        assert database.execute("SELECT sha256 FROM digests").fetchall() == [("stays",)]


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        DigestMemo(tmp_path / "digests.sqlite").of(tmp_path / "nowhere")
