"""Artefacts in a store: publish, inspect, verify, set aside, undo."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import StageError, UsageError
from pipeline.store.cleaning import clean, usage
from pipeline.store.keys import content_digest, sha256_of
from pipeline.store.locks import this_process
from pipeline.store.store import Store
from tests.errors import raises
from tests.pipeline.stores import PROFILE, listing, put


def test_making_and_asking_a_store_touches_nothing(store: Store, tmp_path: Path) -> None:
    store.check()
    assert store.find("train", "0" * 64) is None
    assert store.manifests("train") == []
    assert usage(store) == []
    assert store.sweep() == []
    store.undo()
    store.release()
    assert listing(tmp_path) == []


def test_what_is_published_is_found_whole(store: Store) -> None:
    manifest = put(store, metrics={"top1": 97.5, "loss": float("nan"), "list": (1, 2)})
    stored = Store(store.root).find("train", manifest.key)
    assert stored == manifest
    assert manifest.key == sha256_of({"stage": "train", "tag": 1})
    assert manifest.metrics == {"top1": 97.5, "loss": None, "list": [1, 2]}
    assert set(manifest.files) == {"model.bin", "deep/card.json"}
    assert manifest.files["model.bin"]["size"] == 7
    assert manifest.host == this_process().host
    folder = store.artefact_path("train", manifest.key)
    assert listing(folder) == ["artefact.json", "deep", "deep/card.json", "model.bin"]
    assert listing(store.root / "tmp") == []


def test_equal_content_has_an_equal_digest_whatever_it_was_made_from(store: Store) -> None:
    assert put(store, tag=1).digest == put(store, tag=2, seconds=9.0).digest
    assert put(store, tag=1).digest != put(store, tag=3, text="others").digest


def damage_by_change(folder: Path) -> None:
    (folder / "model.bin").write_text("WEIGHTS")


def damage_by_loss(folder: Path) -> None:
    (folder / "deep" / "card.json").unlink()


def damage_by_link(folder: Path) -> None:
    (folder / "model.bin").rename(folder.parent / "elsewhere")
    (folder / "model.bin").symlink_to(folder.parent / "elsewhere")


def damage_of_manifest(folder: Path) -> None:
    (folder / "artefact.json").write_text('{"schema_version": 1')


def damage_of_metrics(folder: Path) -> None:
    manifest = folder / "artefact.json"
    manifest.write_text(manifest.read_text().replace("97.5", "99.9"))


def loss_of_manifest(folder: Path) -> None:
    (folder / "artefact.json").unlink()


def unknown_field(folder: Path) -> None:
    manifest = folder / "artefact.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "more": 1}))


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (damage_by_change, "model.bin"),
        (damage_by_loss, "deep/card.json"),
        (damage_by_link, "model.bin"),
        (damage_of_manifest, "artefact.json"),
        (damage_of_metrics, "artefact.json"),
        (loss_of_manifest, "artefact.json"),
        (unknown_field, "artefact.json"),
    ],
)
def test_a_damaged_artefact_is_named_and_set_aside(
    store: Store, damage: Callable[[Path], None], file: str
) -> None:
    key = put(store).key
    damage(store.artefact_path("train", key))
    store = Store(store.root)
    inspection = store.inspect("train", key)
    assert inspection.damage
    assert inspection.damage.file == file
    assert store.verify("train", key) == inspection.damage
    assert store.artefact_path("train", key).exists(), "asking changes nothing"
    assert store.find("train", key) is None
    assert not store.artefact_path("train", key).exists()
    assert listing(store.root / "damaged")[0] == f"train-{key}"
    assert put(store).key == key
    damage(store.artefact_path("train", key))
    assert store.find("train", key) is None
    assert f"train-{key}.2" in listing(store.root / "damaged")


def test_rot_that_stat_does_not_see_is_seen_when_read_anew(store: Store) -> None:
    key = put(store).key
    memo = Store(store.root).digests
    path = store.artefact_path("train", key) / "model.bin"
    path.write_text("rotten!")
    memo.remember(path, put(store, tag=2).files["model.bin"]["sha256"])
    memo.save()
    store = Store(store.root)
    assert store.inspect("train", key).damage is None
    damage = store.verify("train", key)
    assert damage
    assert damage.file == "model.bin"


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b", "a//b", "", "./a"])
def test_a_manifest_that_names_files_outside_is_refused(store: Store, path: str) -> None:
    manifest = put(store)
    files = {path: {"sha256": "0" * 64, "size": 1}}
    digest = content_digest({path: "0" * 64})
    forged = replace(manifest, files=files, digest=digest).sealed()
    (store.artefact_path("train", manifest.key) / "artefact.json").write_text(forged.as_text())
    inspection = store.inspect("train", manifest.key)
    assert inspection.damage
    assert "outside" in str(inspection.damage)


def test_an_artefact_in_a_newer_format_is_no_hit_and_no_damage(store: Store) -> None:
    key = put(store).key
    manifest = store.artefact_path("train", key) / "artefact.json"
    manifest.write_text(json.dumps({"schema_version": 2, "unheard": "of"}))
    inspection = Store(store.root).inspect("train", key)
    assert (inspection.manifest, inspection.damage, inspection.newer) == (None, None, 2)
    assert store.manifests("train") == []


def link(folder: Path) -> None:
    (folder / "link").symlink_to("/etc/hostname")


def dangling_link(folder: Path) -> None:
    (folder / "link").symlink_to("nowhere")


def linked_folder(folder: Path) -> None:
    (folder / "link").symlink_to("/etc", target_is_directory=True)


def hard_link(folder: Path) -> None:
    (folder / "one").write_text("1")
    (folder / "link").hardlink_to(folder / "one")


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "link")


@pytest.mark.parametrize("mischief", [link, dangling_link, linked_folder, hard_link, fifo])
def test_links_are_not_accepted(store: Store, mischief: Callable[[Path], None]) -> None:
    with store.scratch() as folder:
        mischief(folder)
        with raises(StageError, what="cannot be stored"):
            store.publish(
                folder,
                stage="s",
                version=1,
                key_parts={},
                inputs={},
                metrics={},
                seconds=0.0,
                profile=PROFILE,
            )
    assert listing(store.root) == ["store.json", "tmp"]


def test_metrics_must_be_json(store: Store) -> None:
    with pytest.raises(StageError) as caught:
        put(store, metrics={"path": Path("/")})
    assert "PosixPath" in caught.value.why


def test_who_comes_second_takes_what_is_there(store: Store) -> None:
    first = put(store, seconds=1.0)
    assert put(store, seconds=2.0) == first
    assert put(store, text="came out otherwise") == first
    assert Store(store.root).find("train", first.key) == first


def test_replacing_takes_the_place_of_what_is_there(store: Store) -> None:
    first = put(store)
    second = put(store, text="forced", replacing=True)
    assert second.digest != first.digest
    assert Store(store.root).find("train", first.key) == second
    assert listing(store.root / "tmp") == []


def test_the_newest_of_the_same_profile_comes_first(store: Store) -> None:
    put(store, tag=1)
    own = put(store, tag=2)
    namesake = put(store, tag=3, profile={"path": "/elsewhere/a.yaml", "name": "a"})
    stranger = put(store, tag=4, profile={"path": "/profiles/b.yaml", "name": "b"})
    assert store.newest("train", PROFILE) == own
    assert store.newest("train", {"path": "/third/a.yaml", "name": "a"}) == namesake
    assert store.newest("train", {"path": "/third/c.yaml", "name": "c"}) == stranger
    assert store.newest("distill", PROFILE) is None


# Whose folder it is


def test_a_strangers_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years")
    with raises(UsageError, what="not a kdpipe store"):
        Store(tmp_path).prepare()
    with raises(UsageError, what="not a kdpipe store"):
        clean(Store(tmp_path), everything=True)
    assert listing(tmp_path) == ["work", "work/thesis.txt"]


def test_a_log_of_an_early_crash_does_not_make_the_folder_strange(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    store = Store(tmp_path)
    store.prepare()
    assert (tmp_path / "store.json").exists()


def test_a_store_of_another_version_is_refused(store: Store) -> None:
    put(store)
    (store.root / "store.json").write_text('{"schema_version": 2}')
    with pytest.raises(UsageError) as caught:
        store.prepare()
    assert "schema_version is 2" in caught.value.why


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises(UsageError, what="not a folder"):
        Store(tmp_path / "file").check()
    with raises(UsageError, what="cannot be used"):
        Store(tmp_path / "file" / "below").prepare()


def test_undo_takes_away_just_what_was_made(tmp_path: Path, store: Store) -> None:
    store.prepare()
    store.open_work("train", "k")
    with store.scratch(), store.lock("train", "k", lambda _holder: None):
        pass
    store.close_work("train", "k", done=False)
    store.undo()
    store.release()
    assert listing(tmp_path) == []

    manifest = put(store)
    before = listing(tmp_path)
    again = Store(store.root)
    again.prepare()
    again.open_work("distill", "k")
    again.close_work("distill", "k", done=False)
    again.undo()
    again.release()
    assert listing(tmp_path) == before
    assert again.find("train", manifest.key) == manifest


def test_undo_leaves_a_store_that_another_run_is_in(store: Store) -> None:
    other = Store(store.root)
    store.prepare()
    other.prepare()
    store.undo()
    assert listing(store.root) == ["store.json"]
    other.release()
    store.release()
