"""Decisions of the plan: what is cached, and the reasons for what is not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.console.json_documents import reason_in_words
from pipeline.errors import DataError, UsageError
from pipeline.running.plan import Decision, Reason, artefacts_to_keep, decide, make_plan
from pipeline.running.runner import in_process, run
from pipeline.running.stage_selection import needed_stages
from pipeline.stage import Conditional, Context, Metrics, Stage
from pipeline.store.cleaning import clean
from pipeline.store.manifest import SCHEMA_VERSION
from pipeline.store.store import Store
from tests.errors import raises
from tests.pipeline.kitchen import NAMES, STAGES, Notebook, SmallProfile, small_profile
from tests.pipeline.stores import listing


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def profile(tmp_path: Path) -> SmallProfile:
    return small_profile(tmp_path)


@pytest.fixture
def done(profile: SmallProfile, store: Store) -> Store:
    """Return a store where the profile is up to date."""
    run(profile, store, Notebook(), stages=STAGES)
    return store


def planned(profile: SmallProfile, store: Store, **more: Any) -> dict[str, Decision]:
    stages = more.pop("stages", STAGES)
    return {
        decision.stage.name: decision
        for decision in make_plan(profile, Store(store.root), stages=stages, **more)
    }


def statuses(plan: dict[str, Decision]) -> dict[str, str]:
    return {name: decision.status for name, decision in plan.items()}


def test_nothing_is_there_yet_and_nothing_is_touched(
    profile: SmallProfile, store: Store, tmp_path: Path
) -> None:
    before = listing(tmp_path)
    plan = planned(profile, store)
    assert listing(tmp_path) == before
    assert set(statuses(plan).values()) == {"stale"}
    assert all(decision.reasons == (Reason("absent"),) for decision in plan.values())
    assert plan["gather"].key
    assert plan["refine"].key is None, "its input has yet to be made"
    assert plan["gather"].seconds_estimate is None


def test_all_is_there(profile: SmallProfile, done: Store) -> None:
    plan = planned(profile, done)
    assert set(statuses(plan).values()) == {"hit"}
    for name, decision in plan.items():
        assert decision.reasons == ()
        assert decision.key
        assert decision.path == done.artefact_path(name, decision.key)
        assert decision.path.is_dir()
        assert decision.digest
        assert decision.seconds_estimate is not None


def test_every_changed_key_is_reported_with_old_and_new(profile: SmallProfile, done: Store) -> None:
    edited = profile.edited(
        refine__rounds=9, refine__steps=[{"name": "mix", "weight": 0.5, "more": True}], seed=8
    )
    plan = planned(edited, done)
    assert plan["gather"].status == "hit"
    assert plan["refine"].reasons == (
        Reason("profile", "refine.rounds", 4, 9),
        Reason("profile", "refine.steps.0.more", None, True),
        Reason("profile", "refine.steps.0.weight", 1.0, 0.5),
        Reason("profile", "seed", 7, 8),
    )
    assert plan["refine"].seconds_estimate is not None
    before = planned(profile, done)["refine"].digest
    assert plan["judge"].reasons == (Reason("input", "refine", before, None),)
    assert plan["aside"].status == "hit"


def test_a_removed_key_is_reported(profile: SmallProfile, done: Store) -> None:
    sections = dict(profile.sections)
    sections["aside"] = {}
    plan = planned(SmallProfile(profile.path, sections), done)
    assert plan["aside"].reasons == (Reason("profile", "aside.text", "x", None),)


def test_what_does_not_count_costs_nothing(profile: SmallProfile, done: Store) -> None:
    edited = profile.edited(refine__pause_s=3.0, refine__trace="/elsewhere")
    assert set(statuses(planned(edited, done)).values()) == {"hit"}


def test_the_path_of_data_does_not_count_but_its_content_does(
    profile: SmallProfile, done: Store, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.rename(tmp_path / "moved")
    moved = profile.edited(data__root=str(tmp_path / "moved"))
    assert set(statuses(planned(moved, done)).values()) == {"hit"}
    (tmp_path / "moved" / "train.npz").write_bytes(b"1 2 3 5")
    (reason,) = planned(moved, done)["gather"].reasons
    assert reason.kind == "data"
    assert len({reason.old, reason.new, None}) == 3


def test_a_file_that_the_profile_names_counts_by_content(
    profile: SmallProfile, done: Store, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.txt"
    recipe.write_text("5")
    with_file = profile.edited(gather__recipe=str(recipe))
    (reason,) = planned(with_file, done)["gather"].reasons
    assert (reason.kind, reason.key, reason.old) == ("file", "gather.recipe", None)
    run(with_file, done, Notebook(), stages=STAGES)
    recipe.rename(tmp_path / "other.txt")
    elsewhere = profile.edited(gather__recipe=str(tmp_path / "other.txt"))
    assert planned(elsewhere, done)["gather"].status == "hit"


def test_a_file_that_is_not_there_is_reported_with_its_place(profile: SmallProfile, store: Store) -> None:
    with pytest.raises(UsageError) as caught:
        planned(profile.edited(gather__recipe="/nowhere/recipe.txt"), store)
    assert caught.value.where == f"{profile.path}:gather.recipe"
    assert "/nowhere/recipe.txt" in caught.value.why


def test_missing_data_is_a_data_error(profile: SmallProfile, store: Store) -> None:
    with pytest.raises(DataError):
        planned(profile.edited(data__root="/nowhere"), store)
    assert not store.root.exists()


def test_another_machine_is_reported_where_it_counts(profile: SmallProfile, done: Store) -> None:
    other = profile.edited(judge__machine="there")
    plan = planned(other, done)
    assert Reason("machine", "machine", "here", "there") in plan["judge"].reasons
    assert plan["refine"].status == "hit"


def test_another_version_is_reported(profile: SmallProfile, done: Store) -> None:
    newer = tuple(replace(stage, version=2) if stage.name == "refine" else stage for stage in STAGES)
    plan = planned(profile, done, stages=newer)
    assert plan["refine"].reasons == (Reason("version", "version", 1, 2),)


def with_libraries(*names: str, patch_releases: bool = True) -> tuple[Stage, ...]:
    """Return the kitchen with these distributions as libraries of its stage refine."""
    return tuple(
        replace(stage, libraries=names, patch_releases=patch_releases) if stage.name == "refine" else stage
        for stage in STAGES
    )


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Distributions of these versions, before all others on sys.path."""
    folder.mkdir()
    for name, version in versions.items():
        (folder / f"{name}-{version}.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(folder))


def test_another_version_of_a_library_is_reported(
    profile: SmallProfile, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = with_libraries("stove", "oven-glove", "no-such-thing")
    install(tmp_path / "before", monkeypatch, stove="2.14.1+cu130", oven_glove="1.0")
    run(profile, store, Notebook(), stages=stages)
    assert planned(profile, store, stages=stages)["refine"].status == "hit"
    install(tmp_path / "same", monkeypatch, stove="2.14.1+cpu")
    assert planned(profile, store, stages=stages)["refine"].status == "hit", "a build of the same release"
    install(tmp_path / "after", monkeypatch, stove="2.14.2", no_such_thing="3.0")
    plan = planned(profile, store, stages=stages)
    assert plan["refine"].reasons == (
        Reason("library", "no-such-thing", None, "3.0"),
        Reason("library", "stove", "2.14.1", "2.14.2"),
    )
    assert [reason_in_words(reason, "to") for reason in plan["refine"].reasons] == [
        "library no-such-thing: not installed to 3.0",
        "library stove: 2.14.1 to 2.14.2",
    ]
    assert plan["gather"].status == plan["aside"].status == "hit"


def test_patch_releases_count_only_where_the_stage_declares_it(
    profile: SmallProfile, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = with_libraries("stove", patch_releases=False)
    install(tmp_path / "before", monkeypatch, stove="2.14.1")
    run(profile, store, Notebook(), stages=stages)
    install(tmp_path / "patch", monkeypatch, stove="2.14.2")
    assert planned(profile, store, stages=stages)["refine"].status == "hit"
    install(tmp_path / "minor", monkeypatch, stove="2.15.0a0+git1234")
    (reason,) = planned(profile, store, stages=stages)["refine"].reasons
    assert reason == Reason("library", "stove", "2.14", "2.15")


def test_an_artefact_from_before_libraries_counted_shows_that_kdpipe_changed(
    profile: SmallProfile, done: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "installed", monkeypatch, stove="2.14.1")
    plan = planned(profile, done, stages=with_libraries("stove"))
    (reason,) = plan["refine"].reasons
    assert (reason.kind, reason.key) == ("version", "libraries")
    assert reason_in_words(reason, "to").startswith("kdpipe's own version")
    assert plan["gather"].status == plan["aside"].status == "hit", "their keys are as they were"
    newer = tuple(replace(stage, version=2) for stage in with_libraries("stove"))
    assert planned(profile, done, stages=newer)["refine"].reasons[0] == Reason("version", "version", 1, 2)
    kinds = [reason.kind for reason in planned(profile, done, stages=newer)["refine"].reasons]
    assert kinds.count("version") == 1
    edited = planned(profile.edited(refine__rounds=9), done, stages=with_libraries("stove"))["refine"]
    assert Reason("profile", "refine.rounds", 4, 9) in edited.reasons, "every other change is listed too"


def test_a_section_that_another_kdpipe_reads_is_no_change_of_the_profile(
    profile: SmallProfile, done: Store
) -> None:
    fewer = tuple(replace(stage, reads=("refine",)) if stage.name == "refine" else stage for stage in STAGES)
    (reason,) = planned(profile, done, stages=fewer)["refine"].reasons
    assert reason == Reason("version", "sections", ["refine", "seed"], ["refine"])
    assert reason_in_words(reason, "to").startswith("kdpipe's own version")


def with_condition() -> tuple[Stage, ...]:
    """Return the kitchen; its stage refine reads `aside` and needs a library if it works for 9 rounds."""
    more = Conditional("tests.pipeline.kitchen.machine:many_rounds", reads=("aside",), libraries=("pytest",))
    return tuple(replace(stage, conditional=more) if stage.name == "refine" else stage for stage in STAGES)


def test_what_is_read_under_a_condition_counts_only_then(profile: SmallProfile, store: Store) -> None:
    stages = with_condition()
    run(profile, store, Notebook(), stages=stages)
    other = profile.edited(aside__text="y")
    assert planned(other, store, stages=stages)["refine"].status == "hit"
    many = profile.edited(refine__rounds=9)
    (reason,) = planned(many, store, stages=stages)["refine"].reasons
    assert reason == Reason("profile", "refine.rounds", 4, 9), "what comes with it is no reason of its own"
    run(many, store, Notebook(), stages=stages)
    assert planned(many, store, stages=stages)["refine"].status == "hit"
    (reason,) = planned(many.edited(aside__text="y"), store, stages=stages)["refine"].reasons
    assert reason == Reason("profile", "aside.text", "x", "y")


def test_a_stage_is_given_no_section_that_is_not_keyed(profile: SmallProfile, store: Store) -> None:
    given: dict[int, set[str]] = {}

    def watch(stage: Stage, context: Context) -> Metrics:
        if stage.name == "refine":
            given[context.settings.refine.rounds] = set(vars(context.settings))
        return in_process(stage, context)

    for rounds in (4, 9):
        edited = profile.edited(refine__rounds=rounds)
        run(edited, store, Notebook(), stages=with_condition(), execute=watch)
    assert given == {4: {"seed", "refine"}, 9: {"seed", "refine", "aside"}}


def test_damage_is_reported_and_left_alone(profile: SmallProfile, done: Store) -> None:
    path = planned(profile, done)["refine"].path
    assert path
    (path / "sum.txt").unlink()
    before = listing(done.root)
    for _ in range(2):
        (reason,) = planned(profile, done)["refine"].reasons
        assert (reason.kind, reason.key, reason.new) == ("damaged", "sum.txt", None)
    assert listing(done.root) == before


def test_an_artefact_of_a_newer_kdpipe_is_absent(profile: SmallProfile, done: Store) -> None:
    path = planned(profile, done)["refine"].path
    assert path
    (path / "artefact.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1}))
    assert planned(profile, done)["refine"].reasons == (
        Reason("absent", "schema_version", SCHEMA_VERSION + 1, SCHEMA_VERSION),
    )


def test_what_is_forced_is_reported_as_forced(profile: SmallProfile, done: Store) -> None:
    plan = planned(profile, done, force=["gather"])
    assert plan["gather"].reasons == (Reason("forced"),)
    assert plan["refine"].reasons[0].kind == "input"


def test_reasons_compare_with_this_profiles_own_artefact(
    profile: SmallProfile, done: Store, tmp_path: Path
) -> None:
    other = SmallProfile(tmp_path / "other.yaml", {**profile.edited(refine__rounds=20).sections, "name": "o"})
    run(other, done, Notebook(), stages=STAGES)
    (reason,) = planned(profile.edited(refine__rounds=6), done)["refine"].reasons
    assert reason == Reason("profile", "refine.rounds", 4, 6)


def test_until_and_only(profile: SmallProfile, store: Store) -> None:
    assert tuple(planned(profile, store)) == NAMES
    assert tuple(planned(profile, store, until="aside")) == ("gather", "refine", "aside")
    assert tuple(planned(profile, store, only="judge")) == ("gather", "refine", "judge")
    assert [stage.name for stage in needed_stages("tell", STAGES)] == ["gather", "refine", "judge", "tell"]


def test_an_unknown_stage_gets_a_suggestion(profile: SmallProfile, store: Store) -> None:
    with raises(UsageError, what="did you mean 'refine'"):
        planned(profile, store, until="refin")
    with raises(UsageError, what="which is not part of this run"):
        planned(profile, store, until="gather", force=["tell"])


def test_what_a_plan_reaches_is_kept(profile: SmallProfile, done: Store) -> None:
    edited = profile.edited(refine__rounds=40)
    run(edited, done, Notebook(), stages=STAGES)
    assert len(done.manifests("refine")) == 2
    half_known = profile.edited(refine__rounds=60)
    keep = artefacts_to_keep(make_plan(half_known, done, stages=STAGES), half_known, done)
    clean(done, keep=keep)
    assert len(done.manifests("gather")) == 1
    assert len(done.manifests("refine")) == 0, "its key is known, and is another"
    assert len(done.manifests("judge")) == 1, "its key is not known: the newest stays"


def test_decide_on_its_own(profile: SmallProfile, done: Store) -> None:
    plan = planned(profile, done)
    gather = plan["gather"].digest
    assert decide(STAGES[1], profile, done, {"gather": gather}).status == "hit"
    assert decide(STAGES[1], profile, done, {"gather": "0" * 64}).reasons == (
        Reason("input", "gather", gather, "0" * 64),
    )
    assert decide(STAGES[1], profile, done, {}).reasons == (Reason("input", "gather", gather, None),)


def test_a_cached_plan_is_quick_and_light(profile: SmallProfile, done: Store) -> None:
    profile.save()
    program = f"""
import json, sys
from pathlib import Path
from pipeline.running.plan import make_plan
from pipeline.store.store import Store
from tests.pipeline.kitchen import STAGES, SmallProfile
path = Path({str(profile.path)!r})
profile = SmallProfile(path, json.loads(path.read_text()))
plan = make_plan(profile, Store(Path({str(done.root)!r})), stages=STAGES)
assert all(decision.status == "hit" for decision in plan)
print(json.dumps(sorted(sys.modules)))
"""
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = set(json.loads(loaded.stdout))
    assert not modules & {"torch", "numpy", "pydantic", "onnx", "fsspec", "yaml"}
    assert not modules & {"tests.pipeline.kitchen.gather", "tests.pipeline.kitchen.judge"}

    begun = time.perf_counter()
    make_plan(profile, done, stages=STAGES)
    assert time.perf_counter() - begun < 0.2, "a few dozen stats take milliseconds"
