"""A store that machines share: pull, push, damage, and remotes that fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import UsageError
from pipeline.running.runner import StageResult, run
from pipeline.store.manifest import MANIFEST
from pipeline.store.remote import Remote
from pipeline.store.store import Store
from tests.pipeline.kitchen import NAMES, STAGES, Notebook, SmallProfile, runs_of, small_profile
from tests.pipeline.stores import listing


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return (tmp_path / "remote" / "deep").as_uri()
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/prefix"


@pytest.fixture
def profile(tmp_path: Path) -> SmallProfile:
    return small_profile(tmp_path)


def bring(
    profile: SmallProfile, root: Path, remote: Remote, **more: Any
) -> tuple[dict[str, str], list[StageResult], list[str]]:
    notebook = Notebook()
    results = run(profile, Store(root), notebook, stages=STAGES, remote=remote, **more)
    return {result.name: result.status for result in results}, results, notebook.notes


def files(url: str) -> dict[str, bytes]:
    fs, root = fsspec.core.url_to_fs(url)
    return {path.removeprefix(root): fs.cat_file(path) for path in fs.find(root)}


def test_a_fleet_shares_one_cache(profile: SmallProfile, tmp_path: Path, url: str) -> None:
    status, pushed, notes = bring(profile, tmp_path / "one", Remote(url))
    assert status == dict.fromkeys(NAMES, "ran")
    assert notes == [f"{name}: pushed to {url}" for name in NAMES]

    status, pulled, notes = bring(profile, tmp_path / "two", Remote(url))
    assert status == dict.fromkeys(NAMES, "hit")
    assert notes == [f"{name}: pulled from {url}" for name in NAMES]
    assert [result.digest for result in pulled] == [result.digest for result in pushed]
    assert [result.metrics for result in pulled] == [result.metrics for result in pushed]
    assert runs_of(tmp_path) == ["gather", "refine"]

    (tmp_path / "offline").mkdir()
    results = run(profile, Store(tmp_path / "two"), Notebook(), stages=STAGES)
    assert {result.status for result in results} == {"hit"}, "what was pulled is here for good"


def test_hits_that_the_remote_lacks_are_pushed(profile: SmallProfile, tmp_path: Path, url: str) -> None:
    run(profile, Store(tmp_path / "one"), Notebook(), stages=STAGES)
    _, _, notes = bring(profile, tmp_path / "one", Remote(url))
    assert notes == [f"{name}: pushed to {url}" for name in NAMES]
    _, _, notes = bring(profile, tmp_path / "one", Remote(url))
    assert notes == [], "they are there now"
    status, _, _ = bring(profile, tmp_path / "two", Remote(url))
    assert status == dict.fromkeys(NAMES, "hit")


def test_equal_files_are_held_once_and_manifests_come_last(
    profile: SmallProfile, tmp_path: Path, url: str
) -> None:
    bring(profile, tmp_path / "one", Remote(url))
    _, _, _ = bring(profile.edited(refine__rounds=5), tmp_path / "one", Remote(url))
    held = files(url)
    assert len([path for path in held if path.endswith(MANIFEST)]) == 6
    manifests = [json.loads(text) for path, text in held.items() if path.endswith(MANIFEST)]
    named = {entry["sha256"] for manifest in manifests for entry in manifest["files"].values()}
    assert {path.rpartition("/")[2] for path in held if "/files/" in path} == named


def spoil(url: str, ending: str, text: bytes | None) -> str:
    fs, _ = fsspec.core.url_to_fs(url)
    root = fsspec.core.url_to_fs(url)[1]
    (path,) = [path for path in fs.find(root) if path.endswith(ending)]
    fs.rm_file(path)
    if text is not None:
        fs.pipe_file(path, text)
    return str(path)


@pytest.mark.parametrize("text", [b"rotten", None, b"{}"])
@pytest.mark.parametrize("what", ["file", "manifest"])
def test_a_damaged_remote_artefact_is_refused_named_and_put_right(
    profile: SmallProfile, tmp_path: Path, url: str, text: bytes | None, what: str
) -> None:
    _, pushed, _ = bring(profile, tmp_path / "one", Remote(url))
    refine = pushed[1]
    assert refine.key
    manifest = Store(tmp_path / "one").find("refine", refine.key)
    assert manifest
    ending = manifest.files["sum.txt"]["sha256"] if what == "file" else f"refine/{refine.key}/{MANIFEST}"
    spoil(url, ending, text)

    status, results, notes = bring(profile, tmp_path / "two", Remote(url))
    assert status == {**dict.fromkeys(NAMES, "hit"), "refine": "ran"}
    assert [result.digest for result in results] == [result.digest for result in pushed]
    if what == "file" or text is not None:
        assert any(f"remote artefact refine/{refine.key} is damaged" in note for note in notes)
    if what == "file":
        problem = "sum.txt is missing" if text is None else "sum.txt has SHA-256 "
        assert any(problem in note for note in notes)
    assert f"refine: pushed to {url}" in notes
    assert listing(tmp_path / "two" / "tmp") == []

    status, _, notes = bring(profile, tmp_path / "three", Remote(url))
    assert status == dict.fromkeys(NAMES, "hit")


def test_what_is_damaged_here_is_not_pushed(profile: SmallProfile, tmp_path: Path, url: str) -> None:
    results = run(profile, Store(tmp_path / "one"), Notebook(), stages=STAGES)
    path, key = results[0].path, results[0].key
    assert path
    assert key
    (path / "count.txt").write_text("?")
    notes: list[str] = []
    store = Store(tmp_path / "one")
    remote = Remote(url)
    remote.check()
    assert not remote.push("gather", key, store, notes.append)
    assert "count.txt" in notes[0]
    assert not [name for name in files(url) if name.endswith(MANIFEST)]


def test_what_is_forced_is_not_pulled(profile: SmallProfile, tmp_path: Path, url: str) -> None:
    bring(profile, tmp_path / "one", Remote(url))
    status, _, _ = bring(profile, tmp_path / "two", Remote(url), force=["refine"])
    assert status == {**dict.fromkeys(NAMES, "hit"), "refine": "ran"}


def test_a_remote_that_fails_later_is_reported_once_and_work_goes_on(
    profile: SmallProfile, tmp_path: Path
) -> None:
    place = tmp_path / "remote"

    class Saboteur(Notebook):
        def started(self, decision: Any, /) -> None:
            super().started(decision)
            if decision.stage.name == "refine":  # a file where the folders should be
                (place / "artefacts").rename(tmp_path / "gone")
                (place / "artefacts").write_text("")

    notebook = Saboteur()
    results = run(profile, Store(tmp_path / "one"), notebook, stages=STAGES, remote=Remote(place.as_uri()))
    assert {result.status for result in results} == {"ran"}
    troubles = [note for note in notebook.notes if "goes on without" in note]
    assert [note.partition(" fails ")[0] for note in troubles] == [
        f"remote {place.as_uri()}: the push",
        f"remote {place.as_uri()}: the pull",
    ]


class Faulty(MemoryFileSystem):  # type: ignore[misc,unused-ignore]
    """A file system in memory, `faulty://`, where some operations are refused."""

    protocol = "faulty"
    fault = ""

    def put_file(self, *arguments: Any, **options: Any) -> None:
        if self.fault in ("read only", "gone"):
            raise PermissionError(f"{self.fault}: put_file")
        super().put_file(*arguments, **options)

    def cat_file(self, path: str, *arguments: Any, **options: Any) -> bytes:
        if self.fault == "gone" or (self.fault == "unreadable" and path.endswith(MANIFEST)):
            raise ConnectionError(f"{self.fault}: cat_file")
        content: bytes = super().cat_file(path, *arguments, **options)
        return content


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> str:
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    Faulty.store.clear()
    monkeypatch.setattr(Faulty, "fault", "")
    return "faulty://bucket"


def test_a_machine_that_may_only_read_goes_on_pulling(
    profile: SmallProfile, tmp_path: Path, faulty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(profile, tmp_path / "one", Remote(faulty))
    for path in [path for path in Faulty.store if "/artefacts/gather/" in path]:
        del Faulty.store[path]
    monkeypatch.setattr(Faulty, "fault", "read only")
    status, _, notes = bring(profile, tmp_path / "two", Remote(faulty))
    assert status == {**dict.fromkeys(NAMES, "hit"), "gather": "ran"}
    (refused,) = [note for note in notes if "read only" in note]
    assert refused.startswith(f"remote {faulty}: the push fails (PermissionError: ")
    assert refused.endswith("this run goes on without pushing")
    assert [note for note in notes if "pulled" in note] == [
        f"{name}: pulled from {faulty}" for name in NAMES if name != "gather"
    ]


def test_a_remote_that_cannot_be_read_is_pushed_to(
    profile: SmallProfile, tmp_path: Path, faulty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Faulty, "fault", "unreadable")
    _, _, notes = bring(profile, tmp_path / "one", Remote(faulty))
    (refused,) = [note for note in notes if "unreadable" in note]
    assert "the pull fails" in refused
    assert [note for note in notes if "pushed" in note] == [f"{name}: pushed to {faulty}" for name in NAMES]


def test_a_remote_that_cannot_be_reached_is_not_tried_again(
    profile: SmallProfile, tmp_path: Path, faulty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cutter(Notebook):
        def started(self, decision: Any, /) -> None:
            super().started(decision)
            monkeypatch.setattr(Faulty, "fault", "gone")

    notebook = Cutter()
    run(profile, Store(tmp_path / "one"), notebook, stages=STAGES, remote=Remote(faulty))
    assert [note for note in notebook.notes if "gone" in note] == [
        f"remote {faulty} fails (PermissionError: gone: put_file); this run goes on without it"
    ]


@pytest.mark.parametrize("url", ["nosuch://bucket/x", "file:///proc/version/x", "s3://bucket/prefix"])
def test_a_remote_that_cannot_be_used_is_a_usage_error(
    profile: SmallProfile, tmp_path: Path, url: str
) -> None:
    if url.startswith("s3") and _has_s3fs():
        pytest.skip("s3fs is installed here; without it the message names it")
    with pytest.raises(UsageError) as caught:
        bring(profile, tmp_path / "one", Remote(url))
    assert url in caught.value.where
    assert caught.value.hint
    assert not (tmp_path / "one").exists()


def test_a_remote_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kdpipe-remote.json").write_text('{"schema_version": 2}')
    with pytest.raises(UsageError) as caught:
        Remote(str(tmp_path)).check()
    assert "schema_version is 2" in caught.value.why


def test_a_password_in_the_url_is_not_shown() -> None:
    remote = Remote("memory://user:secret@bucket/prefix")
    assert "secret" not in remote.url


def _has_s3fs() -> bool:
    try:
        import s3fs  # type: ignore[import-not-found,unused-ignore] # noqa: F401
    except ImportError:
        return False
    return True
