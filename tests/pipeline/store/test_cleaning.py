"""Tidying a store: what is swept up, what is removed, what is left alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.store.cleaning import StoreItem, clean, usage
from pipeline.store.keys import sha256_of
from pipeline.store.locks import this_process
from pipeline.store.store import Store
from tests.errors import raises
from tests.pipeline.stores import listing, put


def dead_owner_name() -> str:
    process = subprocess.Popen(["true"])
    process.wait()
    return f"{process.pid}.1.00ff.{this_process().host}"


def test_the_scratch_folders_of_the_dead_are_swept_up(store: Store) -> None:
    with store.scratch() as own:
        dead = store.root / "tmp" / dead_owner_name()
        far = store.root / "tmp" / "1.1.00ff.other.host"
        stranger = store.root / "tmp" / "stranger"
        for folder in (dead, far, stranger):
            (folder / "output").mkdir(parents=True)
        assert store.sweep() == [dead]
        assert listing(store.root / "tmp") == sorted(
            [
                "1.1.00ff.other.host",
                "1.1.00ff.other.host/output",
                "stranger",
                "stranger/output",
                own.name,
                f"{own.name}.lock",
            ]
        )


def kinds(items: list[StoreItem]) -> list[tuple[str, str]]:
    return sorted((item.kind, item.stage) for item in items)


@pytest.fixture
def full(store: Store) -> Store:
    """Two stages' artefacts and every kind of leftover."""
    for tag in (1, 2):
        put(store, tag=tag)
    put(store, stage="distill")
    broken = put(store, stage="distill", tag=9).key
    store.set_aside("distill", broken)
    for stage in ("train", "distill"):
        (store.open_work(stage, sha256_of(stage)) / "last.ckpt").write_bytes(b"x" * 1000)
    (store.root / "tmp" / dead_owner_name()).mkdir()
    store.write_log("train", "Traceback")
    (store.root / "locks").mkdir()
    (store.root / "locks" / f"train-{sha256_of('train')}.lock").touch()
    for folder in ("artefacts", "work", "logs", "damaged", "tmp"):
        (store.root / folder / "thesis.txt").write_text("a stranger's")
    return store


def test_usage_lists_everything_with_sizes(full: Store) -> None:
    items = usage(full)
    assert kinds(items) == [
        ("artefact", "distill"),
        ("artefact", "train"),
        ("artefact", "train"),
        ("damaged", "distill"),
        ("lock", "train"),
        ("log", "train"),
        ("tmp", ""),
        ("work", "distill"),
        ("work", "train"),
    ]
    assert {item.size_bytes for item in items if item.kind == "work"} == {1000}
    artefact = next(item for item in items if item.kind == "artefact")
    assert artefact.size_bytes == sum(p.stat().st_size for p in artefact.path.rglob("*") if p.is_file())


LEFT_OVER = [("damaged", "distill"), ("lock", "train"), ("log", "train"), ("tmp", "")]


def test_plain_clean_deletes_the_leftovers(full: Store) -> None:
    assert kinds(clean(full)) == LEFT_OVER
    assert kinds(clean(full)) == []
    assert len(usage(full)) == 5


def test_clean_keeps_what_a_plan_reaches(full: Store) -> None:
    keep = {
        ("train", sha256_of({"stage": "train", "tag": 1})),
        ("distill", sha256_of("distill")),
    }
    gone = clean(full, keep=keep)
    assert kinds(gone) == sorted(
        [*LEFT_OVER, ("artefact", "train"), ("artefact", "distill"), ("work", "train")]
    )
    assert kinds(usage(full)) == [("artefact", "train"), ("work", "distill")]
    assert full.find("train", sha256_of({"stage": "train", "tag": 1}))


def test_clean_of_one_stage(full: Store) -> None:
    gone = clean(full, stage="train")
    assert kinds(gone) == [
        ("artefact", "train"),
        ("artefact", "train"),
        ("lock", "train"),
        ("log", "train"),
        ("work", "train"),
    ]


def test_clean_of_everything_leaves_strangers_and_the_marker(full: Store) -> None:
    clean(full, everything=True)
    assert usage(full) == []
    left = {path.name for path in full.root.rglob("*") if path.is_file()}
    assert left == {"store.json", "digests.sqlite", "thesis.txt"}
    assert put(full).key


def test_a_dry_run_only_lists(full: Store) -> None:
    before = listing(full.root)
    items = clean(full, everything=True, dry_run=True)
    assert listing(full.root) == before
    assert kinds(items) == kinds(clean(full, everything=True))


def test_clean_keeps_out_of_a_run(full: Store) -> None:
    other = Store(full.root)
    other.prepare()
    with raises(UsageError, what="A run is using"):
        clean(full, everything=True)
    other.release()
    clean(full, everything=True)


def test_clean_needs_a_store(tmp_path: Path) -> None:
    with raises(UsageError, what="not a kdpipe store"):
        clean(Store(tmp_path / "nowhere"))
    assert clean(Store(tmp_path / "nowhere"), dry_run=True) == []
    assert listing(tmp_path) == []


def test_clean_does_not_follow_a_link_out_of_the_store(tmp_path: Path, store: Store) -> None:
    put(store)
    outside = tmp_path / "outside"
    (store.root / "work").rename(outside) if (store.root / "work").exists() else outside.mkdir()
    (outside / f"train-{sha256_of(1)}").mkdir()
    (store.root / "work").symlink_to(outside)
    with raises(UsageError, what="outside its folder"):
        clean(store, everything=True)
    assert listing(outside) == [f"train-{sha256_of(1)}"]
