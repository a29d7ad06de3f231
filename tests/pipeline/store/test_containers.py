"""Scratch folders that other processes use: in other containers, on other hosts, killed, forked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.store.cleaning import clean, usage
from pipeline.store.locks import hold, lock_of, this_process
from pipeline.store.manifest import MANIFEST
from pipeline.store.store import Store
from tests.pipeline.store.test_cleaning import dead_owner_name
from tests.pipeline.stores import listing, put

CONTAINER = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")
HAS_CONTAINERS = subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode == 0
needs_containers = pytest.mark.skipif(not HAS_CONTAINERS, reason="no process namespaces on this machine")

WRITER = """
import os, sys
from pathlib import Path
from pipeline.store.cleaning import clean
from pipeline.store.store import Store

store = Store(Path(sys.argv[1]))
with store.scratch() as folder:
    (folder / "weights").write_text("x")
    if sys.argv[2] == "fork" and os.fork() == 0:
        print(os.getpid(), flush=True)
        sys.stdin.read()
        os._exit(0)
    if sys.argv[2] != "fork":
        print(os.getpid(), flush=True)
    sys.stdin.read()
    sys.exit(0 if (folder / "weights").exists() else 1)
"""
SWEEPER = """
import sys
from pathlib import Path
from pipeline.store.cleaning import clean
from pipeline.store.store import Store

store = Store(Path(sys.argv[1]))
print(len(store.sweep()) if sys.argv[2] == "sweep" else len(clean(store, everything=True)))
"""


@contextmanager
def writer(store: Store, how: str = "alone") -> Iterator[subprocess.Popen[str]]:
    """Start a process that is writing into a scratch folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(store.root), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        assert process.stdout.readline().strip().isdigit()
        yield process
    finally:
        process.communicate(timeout=60)


@needs_containers
@pytest.mark.parametrize("how", ["sweep", "clean"])
def test_a_container_of_the_same_host_name_leaves_a_live_scratch_folder(store: Store, how: str) -> None:
    store.prepare()
    store.release()
    with writer(store) as process:
        other = subprocess.run(
            [*CONTAINER, sys.executable, "-c", SWEEPER, str(store.root), how],
            capture_output=True,
            text=True,
            check=True,
        )
        assert other.stdout == "0\n"
    assert process.returncode == 0
    assert listing(store.root / "tmp") == []


def test_a_held_lock_keeps_the_folder_of_a_process_that_is_not_visible(store: Store) -> None:
    store.prepare()
    store.release()
    folder = store.root / "tmp" / dead_owner_name()
    (folder / "output").mkdir(parents=True)
    with hold(lock_of(folder), lambda _holder: None):
        assert store.sweep() == []
        assert [item.kind for item in clean(store, everything=True)] == []
        assert [item.path for item in usage(store)] == [folder]
    assert store.sweep() == [folder]


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_the_folder_of_a_killed_process_is_swept_up(store: Store, how: str) -> None:
    with writer(store, how) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        [folder, lock] = sorted((store.root / "tmp").iterdir())
        assert lock == lock_of(folder)
        assert store.sweep() == [folder]
        assert listing(store.root / "tmp") == []


@pytest.mark.parametrize("how", ["sweep", "clean"])
def test_a_lock_file_without_its_folder_is_swept_up(store: Store, how: str) -> None:
    store.prepare()
    store.release()
    lock = lock_of(store.root / "tmp" / dead_owner_name())
    lock.parent.mkdir()
    with hold(lock, lambda _holder: None):
        store.sweep()
        assert lock.exists()
    lock.touch()
    assert (store.sweep() if how == "sweep" else clean(store)) == []
    assert listing(store.root / "tmp") == []


def test_another_host_s_folder_goes_after_a_day_unless_its_lock_is_held(store: Store) -> None:
    store.prepare()
    store.release()
    old = store.root / "tmp" / f"1.1.00ff.not-{this_process().host}"
    new = store.root / "tmp" / f"2.1.00ff.not-{this_process().host}"
    for folder in (old, new):
        folder.mkdir(parents=True)
        lock_of(folder).touch()
    os.utime(old, (0, 0))
    with hold(lock_of(old), lambda _holder: None):
        assert clean(store) == []
    lock_of(old).touch()
    assert store.sweep() == []
    assert [item.path for item in clean(store)] == [old]
    assert listing(store.root / "tmp") == [new.name, lock_of(new).name]


def test_an_artefact_has_no_lock_file(store: Store) -> None:
    manifest = put(store)
    folder = store.artefact_path(manifest.stage, manifest.key)
    assert listing(folder) == sorted([MANIFEST, "deep", "deep/card.json", "model.bin"])
    assert listing(store.root / "tmp") == []
    assert put(store, replacing=True, text="other").digest != manifest.digest
    assert listing(store.root / "tmp") == []


def test_a_scratch_folder_s_lock_is_beside_it_while_it_is_written(store: Store) -> None:
    with store.scratch() as folder:
        assert listing(folder) == []
        assert lock_of(Path(folder)).is_file()
    assert listing(store.root / "tmp") == []


def test_the_marker_does_not_use_a_name_that_another_container_s_process_uses(store: Store) -> None:
    """The first processes of two containers have equal ids, and both may make the store at once."""
    store.root.mkdir(parents=True)
    theirs = store.root / f".store.json.{os.getpid()}"
    theirs.write_text("half")
    store.prepare()
    store.release()
    assert theirs.read_text() == "half"
