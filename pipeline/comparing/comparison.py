"""Many runs of `distill` on one teacher, and the artefact that compares them.

Each run is the distill stage of a profile with other methods and another seed; the store makes it once.
The comparison is an artefact as well (`artefacts/compare/KEY`), keyed by the content of the runs.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.comparing.method_specs import ALONE, Entry
from pipeline.errors import MachineCannot, ProfileError, UsageError
from pipeline.profile.loading import LoadedProfile
from pipeline.running.plan import Decision, KeyFacts, make_plan, profile_entry, resolve
from pipeline.running.run_state import Listener, StageResult
from pipeline.running.runner import prepare_run, run_stages
from pipeline.stage import Context, Progress
from pipeline.store.keys import sha256_of
from pipeline.store.store import Store
from stages import COMPARE, METHODS_FIT

LINE = "distill"


class DamagedRun(Exception):  # noqa: N818 - a way back, not an error
    """An artefact was found damaged when it was to be read, and was set aside: it has to be made again."""


@dataclass(frozen=True)
class Unfit:
    label: str
    why: str


@dataclass(frozen=True)
class Run:
    """One training: what it is called, its seed, and the profile that says it."""

    label: str
    seed: int
    profile: LoadedProfile = field(repr=False)
    decision: Decision = field(repr=False)

    @property
    def title(self) -> str:
        return f"{self.label}, seed {self.seed}"

    @property
    def methods(self) -> list[str]:
        return [str(one["name"]) for one in self.profile.sections["distill"]["methods"]]


@dataclass(frozen=True)
class Done:
    """What became of a run: its result, or why it failed."""

    run: Run
    result: StageResult
    failed: str | None = None


def plan_runs(
    base: LoadedProfile,
    entries: Sequence[Entry],
    seeds: Sequence[int],
    store: Store,
    *,
    alone: bool,
    memo: Path,
) -> tuple[list[Run], list[Unfit]]:
    """All runs, seed by seed, the student alone first, and the methods of `all` that do not fit.

    Two entries that come to the same methods are one. Raises UsageError for methods that do not fit the
    networks, or that the profile cannot take.
    """
    chosen = ([Entry(ALONE, ())] if alone else []) + list(entries)
    facts = KeyFacts(base, store)
    first, unfit = _loaded(base, chosen, seeds[0], memo)
    runs: list[Run] = []
    for seed in seeds:
        for entry, profile in first:
            here = profile if seed == seeds[0] else _profile(base, entry, seed, memo)
            decision = make_plan(here, store, only=LINE, facts=facts)[-1]
            runs.append(Run(entry.label, seed, here, decision))
    stale = {run.label for run in runs if run.decision.status == "stale"} - {ALONE}
    asked = [(entry, profile) for entry, profile in first if entry.label in stale]
    sections = ("data", "teacher", "student", "distill")
    reasons = resolve(METHODS_FIT)([profile.settings(sections) for _, profile in asked]) if asked else []
    for (entry, _), why in zip(asked, reasons, strict=True):
        if why and not entry.optional:
            raise UsageError(
                f"The method {entry.label} does not fit the teacher and the student of this profile",
                where=f"--methods {entry.label}",
                why=why,
                hint="leave it out; --methods all leaves out by itself what does not fit",
            )
        if why:
            unfit.append(Unfit(entry.label, why))
    gone = {one.label for one in unfit}
    return [run for run in runs if run.label not in gone], unfit


def make_runs(
    runs: Sequence[Run],
    store: Store,
    listener: Listener,
    tell: Callable[[Done], None],
    failed: Mapping[str, str],
) -> list[Done]:
    """Brings all runs up to date, one after the other; one that fails does not stop the others.

    failed: by title, runs that are known to have failed and are not tried again.
    Raises what no other run could escape: a fault of the profile, a teacher that cannot be trained.
    """
    finished = []
    for run in runs:
        if run.title in failed:
            done = Done(run, StageResult(LINE, "failed"), failed[run.title])
        else:
            done = _make_run(run, store, listener)
        tell(done)
        finished.append(done)
    return finished


def compare(
    base: LoadedProfile,
    done: Sequence[Done],
    unfit: Sequence[Unfit],
    store: Store,
    *,
    teacher: StageResult,
    split: str,
    progress: Progress,
) -> tuple[Path, str, dict[str, Any]]:
    """Folder, key and content of the comparison: found in the store, or made.

    All finished runs are judged on the split together, in one reading of it. Raises DamagedRun.
    """
    told = [
        {
            "label": one.run.label,
            "seed": one.run.seed,
            "methods": one.run.methods,
            "key": one.result.key,
            "digest": one.result.digest,
            "metrics": dict(one.result.metrics),
            "failed": one.failed,
            "input": None if one.failed else one.run.title,
        }
        for one in done
    ]
    asked = {
        "title": base.name,
        "split": split,
        "reference": done[0].run.label,
        "runs": told,
        "unfit": [{"label": one.label, "why": one.why} for one in unfit],
    }
    made = {"train": teacher} | {one.run.title: one.result for one in done if not one.failed}
    parts = {
        "stage": COMPARE.name,
        "version": COMPARE.version,
        "profile": {name: base.keyed[name] for name in COMPARE.reads},
        "inputs": {name: result.digest for name, result in made.items()},
        "comparison": asked,
        **KeyFacts(base, store).of(COMPARE),
    }
    key = sha256_of(parts)
    folder = store.artefact_path(COMPARE.name, key)
    with store.lock(COMPARE.name, key, lambda holder: progress.note(f"waiting for {holder}")):
        if store.find(COMPARE.name, key) is None:
            _set_aside_damaged(made, store, progress)
            _judge(base, store, asked, made, parts, progress)
    document: dict[str, Any] = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    return folder, key, document


def _set_aside_damaged(made: Mapping[str, StageResult], store: Store, progress: Progress) -> None:
    """Every file is read once before it is trusted. Raises DamagedRun."""
    found = []
    for name, result in made.items():
        stage, key = result.name, str(result.key)
        if damage := store.verify(stage, key):
            place = store.set_aside(stage, key)
            progress.note(f"{name}: the artefact is damaged: {damage}; it was set aside in {place}")
            found.append(name)
    if found:
        raise DamagedRun(", ".join(found))


def _judge(
    base: LoadedProfile,
    store: Store,
    asked: dict[str, Any],
    made: Mapping[str, StageResult],
    parts: dict[str, Any],
    progress: Progress,
) -> None:
    begun = time.monotonic()
    settings = base.settings(COMPARE.reads)
    settings.comparison = asked
    with store.scratch() as output:
        inputs = {name: result.path for name, result in made.items() if result.path}
        context = Context(settings, inputs, output, work=output, progress=progress)
        metrics = importlib.import_module(COMPARE.module).run(context)
        store.publish(
            output,
            stage=COMPARE.name,
            version=COMPARE.version,
            key_parts=parts,
            inputs={
                name: {"key": str(result.key), "digest": str(result.digest)} for name, result in made.items()
            },
            metrics=metrics,
            seconds=time.monotonic() - begun,
            profile=profile_entry(base),
        )


def _make_run(run: Run, store: Store, listener: Listener) -> Done:
    outcome = run_stages(prepare_run(run.profile, store, _OfRun(listener, run.title), only=LINE))
    error, failed = outcome.error, outcome.failed
    if error is None:
        return Done(run, outcome.results[-1])
    if isinstance(error, UsageError | MachineCannot) or failed is None or failed.name != LINE:
        raise error
    return Done(run, failed, f"{error.what}: {error.why}" if error.why else error.what)


class _OfRun:
    """Passes on what one run does, under the run's title, and nothing of the teacher, the same for all."""

    def __init__(self, listener: Listener, title: str) -> None:
        self._listener = listener
        self._title = title

    def started(self, decision: Decision) -> None:
        stage = replace(decision.stage, name=self._title)
        self._listener.started(replace(decision, stage=stage))

    def progress(self, stage_name: str) -> Progress:
        return self._listener.progress(self._title)

    def finished(self, result: StageResult) -> None:
        if result.name == LINE:
            self._listener.finished(replace(result, name=self._title))

    def note(self, text: str) -> None:
        self._listener.note(text)

    def waiting(self, stage_name: str, holder_text: str) -> None:
        self._listener.waiting(self._title, holder_text)


def _loaded(
    base: LoadedProfile, entries: Sequence[Entry], seed: int, memo: Path
) -> tuple[list[tuple[Entry, LoadedProfile]], list[Unfit]]:
    """The profile of every entry with the first seed, each list of methods once."""
    found: dict[str, tuple[Entry, LoadedProfile]] = {}
    unfit = []
    for entry in entries:
        try:
            profile = _profile(base, entry, seed, memo)
        except ProfileError as error:
            if not entry.optional:
                faults = [replace(fault, file=f"--methods {entry.label}") for fault in error.faults]
                raise ProfileError(faults) from error
            unfit.append(Unfit(entry.label, "; ".join(fault.message for fault in error.faults)))
            continue
        methods = json.dumps(profile.sections["distill"]["methods"])
        # Said by name rather than as the profile's where both come to the same.
        if methods not in found or found[methods][0].label == "profile":
            found[methods] = (entry, profile)
    return list(found.values()), unfit


def _profile(base: LoadedProfile, entry: Entry, seed: int, memo: Path) -> LoadedProfile:
    profile = base.with_overrides(set_for(base, entry, seed), memo)
    if memo.exists():
        profile.remember(memo)
    return profile


def set_for(base: LoadedProfile, entry: Entry, seed: int) -> tuple[str, ...]:
    """What `--set` adds to the profile for a run. The profile's own seed stays as the profile says it, so
    that what `kdpipe run` made is found."""
    distill = base.sections["distill"]
    own = base.sections["seed"] if distill["seed"] is None else distill["seed"]
    seeded = () if seed == own else (f"distill.seed={seed}",)
    return ("distill.baseline=false", "distill.keep=best", *entry.overrides(), *seeded)
