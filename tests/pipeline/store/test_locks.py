"""Locks that end with their process, and the owners of scratch folders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from pipeline.store.locks import Owner, hold, is_held, own_name, owner_of, this_process

HOLDER = """
import os, sys, time
from pathlib import Path
from pipeline.store.locks import hold

with hold(Path(sys.argv[1]), lambda _holder: None):
    if sys.argv[2] == "fork":
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.write(writing, b"here")  # on a busy machine it may come to life late
            time.sleep(60)
            os._exit(0)
        os.read(reading, 4)
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path, how: str = "alone") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(path), how],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_the_holder_is_named_and_the_lock_dies_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    process = holder(path)
    assert is_held(path)
    texts: list[str] = []

    def waiting(text: str) -> None:
        texts.append(text)
        process.kill()

    with hold(path, waiting):
        assert is_held(path)
    process.wait()
    assert len(texts) == 1
    assert f"process {process.pid} on {os.uname().nodename}, since " in texts[0]
    assert not path.exists()


def test_a_forked_worker_does_not_keep_the_lock_of_a_killed_parent(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    process = holder(path, "fork")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    try:
        assert not is_held(path)
    finally:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.long
def test_only_one_at_a_time_among_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a pause between attempts, so that some find the file of a holder that is just leaving."""
    monkeypatch.setattr("pipeline.store.locks.POLL_S", 0.0)
    path, inside, most = tmp_path / "a.lock", 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(100):
            with hold(path, lambda _holder: None):
                inside += 1
                most = max(most, inside)
                threading.Event().wait(0.0002)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not path.exists()


def test_owners_are_read_from_names(tmp_path: Path) -> None:
    assert owner_of(tmp_path / own_name()) == this_process()
    assert not this_process().is_gone()
    assert owner_of(tmp_path / "somebody's folder") is None


def test_an_owner_is_gone_when_its_process_is() -> None:
    me = this_process()
    assert Owner(me.host, me.pid, "1").is_gone()  # the id is used again by a later process
    assert not Owner("elsewhere", me.pid, "1").is_gone()  # processes of other hosts cannot be checked
    process = subprocess.Popen(["true"])
    process.wait()
    assert Owner(me.host, process.pid, "1").is_gone()
