"""Runs of a small pipeline: results, errors, damage, kills and waiting."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import KdpipeError, MachineCannot, StageError, UsageError
from pipeline.running.plan import make_plan
from pipeline.running.runner import StageResult, prepare_run, run, run_stages
from pipeline.store.manifest import MANIFEST
from pipeline.store.store import Store
from tests.errors import raises
from tests.pipeline.kitchen import NAMES, STAGES, Notebook, SmallProfile, runs_of, small_profile
from tests.pipeline.stores import listing

ROOT = Path(__file__).parents[3]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def profile(tmp_path: Path) -> SmallProfile:
    return small_profile(tmp_path)


def status_of(results: list[StageResult]) -> dict[str, str]:
    return {result.name: result.status for result in results}


def ran(results: list[StageResult]) -> list[str]:
    return [result.name for result in results if result.status == "ran"]


def bring(profile: SmallProfile, store: Store, **more: Any) -> list[StageResult]:
    return run(profile, Store(store.root), Notebook(), stages=STAGES, **more)


def failing(profile: SmallProfile, store: Store, **more: Any) -> tuple[BaseException, Notebook]:
    notebook = Notebook()
    with pytest.raises((KdpipeError, KeyboardInterrupt)) as caught:
        run(profile, Store(store.root), notebook, stages=STAGES, **more)
    return caught.value, notebook


def ended(profile: SmallProfile, store: Store) -> tuple[BaseException, Notebook, list[StageResult]]:
    """Return the error that ends a run, and the results that its state holds afterwards."""
    notebook = Notebook()
    state = prepare_run(profile, Store(store.root), notebook, stages=STAGES)
    error: BaseException | None
    try:
        error = run_stages(state).error
    except KeyboardInterrupt as interrupt:
        error = interrupt
    assert error is not None
    return error, notebook, state.results()


# What runs


def test_all_runs_once_and_then_nothing(profile: SmallProfile, store: Store, tmp_path: Path) -> None:
    notebook = Notebook()
    results = run(profile, store, notebook, stages=STAGES)
    assert status_of(results) == dict.fromkeys(NAMES, "ran")
    assert notebook.results == results
    assert notebook.began == list(NAMES)
    assert listing(store.root / "tmp") == listing(store.root / "work") == listing(store.root / "locks") == []
    for result in results:
        assert result.path
        assert result.key
        manifest = store.find(result.name, result.key)
        assert manifest
        assert manifest.digest == result.digest
        assert manifest.profile == {"path": str(profile.path), "name": "small"}
        assert result.reasons

    notebook = Notebook()
    again = run(profile, Store(store.root), notebook, stages=STAGES)
    assert status_of(again) == dict.fromkeys(NAMES, "hit")
    assert notebook.began == []
    assert [result.digest for result in again] == [result.digest for result in results]
    assert again[0].metrics == {"numbers": 4, "mean": None}
    assert runs_of(tmp_path) == ["gather", "refine"]


def test_an_input_that_comes_out_the_same_costs_nothing_downstream(
    profile: SmallProfile, store: Store
) -> None:
    bring(profile, store)
    assert ran(bring(profile.edited(refine__rounds=5), store)) == ["refine"]
    assert ran(bring(profile.edited(refine__rounds=6), store)) == ["refine", "judge", "tell"]


def test_equal_work_gives_equal_content(profile: SmallProfile, tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        results = bring(profile, Store(tmp_path / name))
        digests.append([result.digest for result in results])
    assert digests[0] == digests[1]


def test_only_a_stage_and_what_it_needs(profile: SmallProfile, store: Store) -> None:
    assert ran(bring(profile, store, only="judge")) == ["gather", "refine", "judge"]
    assert ran(bring(profile, store, until="aside")) == ["aside"]


def test_a_forced_stage_runs_and_forgets_its_checkpoints(
    profile: SmallProfile, store: Store, tmp_path: Path
) -> None:
    bring(profile, store)
    key = bring(profile, store)[1].key
    assert key
    first = store.find("refine", key)
    work = store.open_work("refine", key)
    (work / "checkpoint.txt").write_text("old")
    results = bring(profile, store, force=["refine"])
    assert ran(results) == ["refine"], "what came out is the same"
    assert results[1].metrics["resumed"] is False
    assert runs_of(tmp_path) == ["gather", "refine", "refine"]
    second = Store(store.root).find("refine", key)
    assert first
    assert second
    assert second.created > first.created


def test_the_history_is_given_to_a_stage_that_reads_it(profile: SmallProfile, store: Store) -> None:
    bring(profile, store, until="refine")
    assert bring(profile, store)[-1].metrics["history"] == [
        ["gather", "hit", True],
        ["refine", "hit", True],
        ["aside", "ran", True],
        ["judge", "ran", True],
    ]


def test_data_that_changes_while_a_stage_runs_is_not_cached(
    profile: SmallProfile, store: Store, tmp_path: Path
) -> None:
    class Meddler(Notebook):
        def progress(self, stage_name: str, /) -> Any:
            (tmp_path / "data" / "train.npz").write_bytes(b"9 9 9 9")
            return super().progress(stage_name)

    with raises(StageError, what="changed while stage gather"):
        run(profile, store, Meddler(), stages=STAGES)
    assert not store.root.exists()


# What fails


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("refuse early", UsageError, "refine cannot do this"),
        ("refuse late", UsageError, "refine cannot do this after all"),
        ("no checkpoint", StageError, "refine gives up"),
        ("link", StageError, "that cannot be stored"),
        ("hard link", StageError, "that cannot be stored"),
        ("manifest", StageError, "that cannot be stored"),
    ],
)
def test_a_failing_stage_leaves_the_store_as_it_was(
    profile: SmallProfile, store: Store, fault: str, error: type[KdpipeError], words: str, bare: bool
) -> None:
    bring(profile, store, until="gather")
    if bare:  # folders that are not there are not left behind either
        for name in ("tmp", "locks", "work"):
            (store.root / name).rmdir()
    before = listing(store.root)
    caught, notebook, results = ended(profile.edited(refine__fault=fault), store)
    assert isinstance(caught, error)
    assert words in caught.what
    left = [
        path for path in listing(store.root) if not re.match(r"work(/refine-\w+(/checkpoint\.txt)?)?$", path)
    ]
    assert left == [path for path in before if path != "work"]
    if error is UsageError or fault == "no checkpoint":
        assert listing(store.root) == before, "there is no checkpoint to keep"
    assert status_of(results) == {
        "gather": "skipped" if fault == "refuse early" else "hit",
        "refine": "failed",
        "aside": "skipped",
        "judge": "skipped",
        "tell": "skipped",
    }
    assert (notebook.results[-1].name, notebook.results[-1].status) == ("refine", "failed")
    assert ran(bring(profile, store))[0] == "refine", "no failure is cached"


@pytest.mark.parametrize("values", [{"data__root": "/nowhere"}, {"refine__fault": "refuse early"}])
def test_wrong_input_makes_no_store(profile: SmallProfile, store: Store, values: dict[str, Any]) -> None:
    caught, _ = failing(profile.edited(**values), store)
    assert isinstance(caught, UsageError)
    assert not store.root.exists()


def test_the_first_stages_failure_makes_no_store(profile: SmallProfile, store: Store, tmp_path: Path) -> None:
    (tmp_path / "data" / "train.npz").write_bytes(b"no numbers")
    caught, _ = failing(profile, store)
    assert isinstance(caught, StageError)
    assert [name.partition("-")[0] for name in listing(store.root)] == [
        "logs",
        "logs/gather",
        "store.json",
    ], "of a crash the log alone is left"


def test_a_crash_is_reported_with_its_traceback_in_a_log(profile: SmallProfile, store: Store) -> None:
    caught, _ = failing(profile.edited(refine__fault="crash"), store)
    assert isinstance(caught, StageError)
    assert caught.why == "ZeroDivisionError: no such luck"
    (log,) = (store.root / "logs").iterdir()
    assert str(log) in caught.where
    assert log.name.startswith("refine-")
    assert "ZeroDivisionError: no such luck" in log.read_text()
    assert listing(store.root / "work") == listing(store.root / "tmp") == listing(store.root / "locks") == []
    caught_again, _ = failing(profile.edited(refine__fault="crash"), store)
    assert isinstance(caught_again, StageError), "a failure is not cached"


def test_checkpoints_outlive_a_failure_and_an_interrupt(profile: SmallProfile, store: Store) -> None:
    for fault in ("keep checkpoint", "interrupt"):
        _, _, results = ended(profile.edited(refine__fault=fault), store)
        assert status_of(results)["refine"] == "failed"
        assert [path.name for path in store.root.glob("work/*/*")] == ["checkpoint.txt"]
        assert listing(store.root / "tmp") == listing(store.root / "locks") == []
    results = bring(profile, store)
    assert results[1].metrics["resumed"] is True
    assert listing(store.root / "work") == []


def test_what_the_machine_cannot_build_is_reported_at_the_end_and_each_time(
    profile: SmallProfile, store: Store
) -> None:
    needy = profile.edited(judge__cannot=["tensorrt-fp16", "tensorrt-int8"])
    for status in ("ran", "hit"):
        caught, _, results = ended(needy, store)
        assert isinstance(caught, MachineCannot)
        assert "tensorrt-fp16, tensorrt-int8" in caught.what
        assert caught.hint == "buy one"
        assert "no such machine" in caught.why
        assert status_of(results) == dict.fromkeys(NAMES, status)


# What is damaged


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def lose(path: Path) -> None:
    path.unlink()


def spoil_manifest(path: Path) -> None:
    while not (path / MANIFEST).exists():
        path = path.parent
    (path / MANIFEST).write_text("{")


@pytest.mark.parametrize("harm", [spoil, lose, spoil_manifest])
@pytest.mark.parametrize(("stage", "file"), [(0, "deep/numbers.json"), (1, "sum.txt"), (4, "told.txt")])
def test_a_damaged_artefact_is_set_aside_named_and_made_again(
    profile: SmallProfile, store: Store, harm: Callable[[Path], None], stage: int, file: str
) -> None:
    before = bring(profile, store)
    result = before[stage]
    assert result.path
    harm(result.path / file)
    notebook = Notebook()
    results = run(profile, Store(store.root), notebook, stages=STAGES)
    assert ran(results) == [result.name]
    assert results[stage].reasons[0].kind == "damaged"
    assert [r.digest for r in results] == [r.digest for r in before]
    (place,) = (store.root / "damaged").iterdir()
    assert any(result.name in note and str(place) in note for note in notebook.notes)


def rot(store: Store, path: Path) -> None:
    """Bits that change without the file system's noticing: the memo still holds them for good."""
    before = path.stat()
    good = store.digests.of(path)
    path.write_bytes(b"?" * before.st_size)
    store.digests.remember(path, good)
    store.digests.save()


def test_inputs_are_read_anew_before_a_stage_uses_them(profile: SmallProfile, store: Store) -> None:
    results = bring(profile, store)
    assert results[0].path
    rot(store, results[0].path / "deep" / "numbers.json")
    assert status_of(bring(profile, store)) == dict.fromkeys(NAMES, "hit"), "a cached run only asks stat"
    notebook = Notebook()
    edited = run(profile.edited(refine__rounds=6), Store(store.root), notebook, stages=STAGES)
    assert ran(edited) == ["gather", "refine", "judge", "tell"]
    assert [result.status for result in notebook.results if result.name == "gather"] == ["hit", "ran"]
    assert any("numbers.json has SHA-256" in note for note in notebook.notes)
    fresh = bring(profile.edited(refine__rounds=6), Store(store.root.parent / "fresh"))
    assert [result.digest for result in fresh] == [result.digest for result in edited]


def test_an_artefact_in_a_newer_format_makes_room_with_a_note(profile: SmallProfile, store: Store) -> None:
    path = bring(profile, store)[2].path
    assert path
    (path / MANIFEST).write_text(json.dumps({"schema_version": 99}))
    notebook = Notebook()
    assert ran(run(profile, Store(store.root), notebook, stages=STAGES)) == ["aside"]
    assert any("newer kdpipe (schema 99)" in note for note in notebook.notes)


# What is killed, and who waits


def drive(profile: SmallProfile, store: Store) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.pipeline.kitchen.drive", str(profile.save()), str(store.root)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    answers: dict[str, Any] = json.loads(output)
    return answers


@contextlib.contextmanager
def until_true(condition: Callable[[], object]) -> Iterator[None]:
    deadline = time.monotonic() + 100.0
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    yield


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_no_half_artefact_and_goes_on_from_its_checkpoint(
    profile: SmallProfile, store: Store, tmp_path: Path, number: int
) -> None:
    process = drive(profile.edited(refine__pause_s=300.0), store)
    with until_true(lambda: list(store.root.glob("work/refine-*/checkpoint.txt"))):
        os.kill(process.pid, number)
    process.communicate()
    left = listing(store.root)
    assert not [path for path in left if path.startswith("artefacts/refine")]
    assert bool([path for path in left if path.startswith("tmp/")]) == (number == signal.SIGKILL)

    report = answer(drive(profile, store))
    assert report["status"] == {**dict.fromkeys(NAMES, "ran"), "gather": "hit"}
    assert report["metrics"]["refine"]["resumed"] is True
    assert listing(store.root / "tmp") == listing(store.root / "work") == listing(store.root / "locks") == []
    fresh = bring(profile, Store(tmp_path / "fresh"))
    cached = bring(profile, store)
    assert [result.digest for result in cached] == [result.digest for result in fresh]


def test_of_two_runs_at_once_one_works_and_the_other_waits(
    profile: SmallProfile, store: Store, tmp_path: Path
) -> None:
    slow = profile.edited(refine__pause_s=1.5)
    first = drive(slow, store)
    with until_true(lambda: list(store.root.glob("work/refine-*/checkpoint.txt"))):
        second = drive(slow, store)
    first_report, second_report = answer(first), answer(second)
    assert first_report["status"]["refine"] == "ran"
    assert second_report["status"]["refine"] == "hit"
    assert runs_of(tmp_path) == ["gather", "refine"]
    (waited,) = [wait for wait in second_report["waits"] if wait[0] == "refine"]
    assert f"process {first.pid} on {os.uname().nodename}" in waited[1]


def test_who_waited_for_a_killed_run_does_its_work(profile: SmallProfile, store: Store) -> None:
    first = drive(profile.edited(refine__pause_s=300.0), store)
    with until_true(lambda: list(store.root.glob("work/refine-*/checkpoint.txt"))):
        second = drive(profile.edited(refine__pause_s=300.0), store)
    time.sleep(0.5)
    assert second.poll() is None
    first.kill()
    first.communicate()
    report = answer(second)
    assert report["status"]["refine"] == "ran"
    assert report["metrics"]["refine"]["resumed"] is True


def test_a_cached_run_is_light(profile: SmallProfile, store: Store) -> None:
    bring(profile, store)
    report = answer(drive(profile, store))
    assert set(report["status"].values()) == {"hit"}
    assert not set(report["modules"]) & {"torch", "numpy", "pydantic", "onnx", "fsspec"}


# What the plan says is what the run does

EDITS = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.sampled_from([7, 8]),
        "gather__scale": st.sampled_from([10, 10.0, 20]),
        "refine__rounds": st.integers(2, 7),
        "refine__pause_s": st.sampled_from([0.0, 0]),
        "aside__text": st.sampled_from(["x", "y"]),
        "judge__limit": st.sampled_from([0.5, 0.9, 50.0]),
        "judge__machine": st.sampled_from(["here", "there"]),
        "name": st.sampled_from(["small", "other"]),
        "data__image_size": st.sampled_from([8, 16]),
    },
)
HARM = st.sampled_from([None, None, *NAMES])


@pytest.mark.long
@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(story=st.lists(st.tuples(EDITS, HARM), min_size=2, max_size=4))
def test_what_the_plan_lists_is_what_the_run_does(story: list[tuple[dict[str, Any], str | None]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        for edits, harmed in story:
            profile = small_profile(Path(folder), **edits)
            if harmed:
                for path in store.root.glob(f"artefacts/{harmed}/*/*.txt"):
                    path.unlink()
            plan = make_plan(profile, Store(store.root), stages=STAGES)
            results = bring(profile, store)
            for decision, result in zip(plan, results, strict=True):
                assert decision.stage.name == result.name
                if decision.status == "hit":
                    assert (result.status, result.digest) == ("hit", decision.digest)
                elif decision.key is not None:  # stale for reasons of its own
                    assert (result.status, result.key) == ("ran", decision.key)
                if decision.key is None:
                    assert any(reason.kind in ("input", "absent") for reason in decision.reasons)
            again = make_plan(profile, Store(store.root), stages=STAGES)
            assert {decision.status for decision in again} == {"hit"}
        fresh = bring(profile, Store(Path(folder) / "fresh"))
        assert [result.digest for result in fresh] == [result.digest for result in results]
