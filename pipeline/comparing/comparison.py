"""Many runs of `distill` with one teacher, and the artefact that compares them.

Each run is the distill stage of a profile with other methods and another seed; the store caches it.
The comparison is an artefact as well (`artefacts/compare/KEY`), keyed by the content of the runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.comparing.method_specs import STUDENT_ALONE, MethodSpec
from pipeline.errors import MachineCannot, ProfileError, UsageError
from pipeline.profile.loading import LoadedProfile
from pipeline.running.key_facts import KeyFacts, resolve
from pipeline.running.plan import Decision, make_plan, profile_entry
from pipeline.running.run_state import Listener, StageResult
from pipeline.running.runner import prepare_run, run_stages
from pipeline.stage import Context, Progress
from pipeline.store.keys import sha256_of
from pipeline.store.store import Store
from stages import COMPARE, METHODS_FIT

RUN_STAGE = "distill"
"""The stage that a run executes, after those that it needs."""


class DamagedArtefacts(Exception):  # noqa: N818 - the caller recovers from it: it runs the stages again
    """Artefacts are damaged and were set aside: their stages have to run again."""


@dataclass(frozen=True)
class UnfitMethod:
    """A method of `all` that does not fit the networks.

    Attributes:
        label: The method.
        why: The reason, for people.
    """

    label: str
    why: str


@dataclass(frozen=True)
class PlannedRun:
    """One training of the student.

    Attributes:
        label: The methods, by the label that the comparison uses.
        seed: The student's seed.
        profile: The profile with these methods and this seed.
        decision: Whether the run is cached, by the plan at the start.
    """

    label: str
    seed: int
    profile: LoadedProfile = field(repr=False)
    decision: Decision = field(repr=False)

    @property
    def title(self) -> str:
        """The label and the seed; unique in a comparison."""
        return f"{self.label}, seed {self.seed}"

    @property
    def methods(self) -> list[str]:
        """The names of the methods; empty for the student alone."""
        return [str(method["name"]) for method in self.profile.sections["distill"]["methods"]]


@dataclass(frozen=True)
class FinishedRun:
    """A run with its result.

    Attributes:
        run: The run.
        result: The result of the stage distill.
        why_failed: What went wrong; None if the run succeeded.
    """

    run: PlannedRun
    result: StageResult
    why_failed: str | None = None


def plan_runs(
    base: LoadedProfile,
    specs: Sequence[MethodSpec],
    seeds: Sequence[int],
    store: Store,
    *,
    baseline: bool,
    memo: Path,
) -> tuple[list[PlannedRun], list[UnfitMethod]]:
    """Plan a run for each entry and seed. Entries with the same methods become one.

    Args:
        base: The profile.
        specs: What to compare.
        seeds: The student's seeds.
        store: Where the artefacts are.
        baseline: Whether the student alone is trained too, as the first entry.
        memo: The folder with the validated profiles.

    Returns:
        All runs, seed by seed, and the methods of `all` that do not fit.

    Raises:
        UsageError: Methods do not fit the networks.
        ProfileError: The profile does not accept the methods.
    """
    chosen = ([MethodSpec(STUDENT_ALONE, ())] if baseline else []) + list(specs)
    facts = KeyFacts(base, store)
    distinct, unfit = _distinct_profiles(base, chosen, seeds[0], memo)
    runs: list[PlannedRun] = []
    for seed in seeds:
        for spec, first_profile in distinct:
            profile = first_profile if seed == seeds[0] else _profile(base, spec, seed, memo)
            decision = make_plan(profile, store, only=RUN_STAGE, facts=facts)[-1]
            runs.append(PlannedRun(spec.label, seed, profile, decision))
    stale = {run.label for run in runs if run.decision.status == "stale"} - {STUDENT_ALONE}
    unproved = [(spec, profile) for spec, profile in distinct if spec.label in stale]
    sections = ("data", "teacher", "student", "distill")
    settings = [profile.settings(sections) for _, profile in unproved]
    reasons = resolve(METHODS_FIT)(settings) if unproved else []
    for (spec, _), why in zip(unproved, reasons, strict=True):
        if why and not spec.optional:
            raise UsageError(
                f"The method {spec.label} does not fit the teacher and the student of this profile",
                where=f"--methods {spec.label}",
                why=why,
                hint="leave it out; --methods all leaves out every method that does not fit",
            )
        if why:
            unfit.append(UnfitMethod(spec.label, why))
    unfit_labels = {method.label for method in unfit}
    return [run for run in runs if run.label not in unfit_labels], unfit


def finish_runs(
    runs: Sequence[PlannedRun],
    store: Store,
    listener: Listener,
    report: Callable[[FinishedRun], None],
    failed: Mapping[str, str],
) -> list[FinishedRun]:
    """Bring all runs up to date, one after the other; a run that fails does not stop the others.

    Args:
        runs: The runs.
        store: Where the artefacts are.
        listener: Receives the events of the runs, under their titles.
        report: Receives each finished run.
        failed: By title, why a run has failed already; it is not tried again.

    Raises:
        KdpipeError: An error that every other run would meet too: a fault of the profile, or a teacher that
            cannot be trained.
    """
    finished = []
    for run in runs:
        if run.title in failed:
            finished_run = FinishedRun(run, StageResult(RUN_STAGE, "failed"), failed[run.title])
        else:
            finished_run = _finish_run(run, store, listener)
        report(finished_run)
        finished.append(finished_run)
    return finished


def compare_runs(
    base: LoadedProfile,
    finished: Sequence[FinishedRun],
    unfit: Sequence[UnfitMethod],
    store: Store,
    *,
    teacher: StageResult,
    split: str,
    progress: Progress,
) -> tuple[Path, str, dict[str, Any]]:
    """Judge all runs that succeeded, in one pass over the images, unless the comparison is cached.

    Args:
        base: The profile.
        finished: The runs; the first one's label is the reference.
        unfit: The methods that do not fit.
        store: Where the artefacts are.
        teacher: The result of the stage train.
        split: The images to judge on, `test` or `validation`.
        progress: Receives the progress.

    Returns:
        The folder of the artefact, its key, and the content of `comparison.json`.

    Raises:
        DamagedArtefacts: The teacher or runs are damaged.
    """
    comparison = {
        "title": base.name,
        "split": split,
        "reference": finished[0].run.label,
        "runs": [_run_entry(run) for run in finished],
        "unfit": [{"label": method.label, "why": method.why} for method in unfit],
    }
    results = {"train": teacher} | {each.run.title: each.result for each in finished if not each.why_failed}
    key_parts = {
        "stage": COMPARE.name,
        "version": COMPARE.version,
        "profile": {name: base.keyed[name] for name in COMPARE.reads},
        "inputs": {name: result.digest for name, result in results.items()},
        "comparison": comparison,
        **KeyFacts(base, store).of(COMPARE),
    }
    key = sha256_of(key_parts)
    folder = store.artefact_path(COMPARE.name, key)
    with store.lock(COMPARE.name, key, lambda holder: progress.note(f"waiting for {holder}")):
        if store.find(COMPARE.name, key) is None:
            _set_aside_damaged(results, store, progress)
            _publish(base, store, comparison, results, key_parts, progress)
    document: dict[str, Any] = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    return folder, key, document


def _run_entry(finished: FinishedRun) -> dict[str, Any]:
    """Return what the stage compare needs of a run; its weights are in the input with the run's title."""
    return {
        "label": finished.run.label,
        "seed": finished.run.seed,
        "methods": finished.run.methods,
        "key": finished.result.key,
        "digest": finished.result.digest,
        "metrics": dict(finished.result.metrics),
        "failed": finished.why_failed,
        "input": None if finished.why_failed else finished.run.title,
    }


def _set_aside_damaged(results: Mapping[str, StageResult], store: Store, progress: Progress) -> None:
    """Verify every file before it is used.

    Raises:
        DamagedArtefacts: Artefacts were damaged; they are set aside.
    """
    damaged = []
    for name, result in results.items():
        stage, key = result.name, str(result.key)
        if damage := store.verify(stage, key):
            folder = store.set_aside(stage, key)
            progress.note(f"{name}: the artefact is damaged: {damage}; it was set aside in {folder}")
            damaged.append(name)
    if damaged:
        raise DamagedArtefacts(", ".join(damaged))


def _publish(
    base: LoadedProfile,
    store: Store,
    comparison: dict[str, Any],
    results: Mapping[str, StageResult],
    key_parts: dict[str, Any],
    progress: Progress,
) -> None:
    """Run the stage compare, and publish its artefact."""
    begun = time.monotonic()
    settings = base.settings(COMPARE.reads)
    settings.comparison = comparison
    with store.scratch() as output:
        inputs = {name: result.path for name, result in results.items() if result.path}
        context = Context(settings, inputs, output, work=output, progress=progress)
        metrics = resolve(f"{COMPARE.module}:run")(context)
        store.publish(
            output,
            stage=COMPARE.name,
            version=COMPARE.version,
            key_parts=key_parts,
            inputs={
                name: {"key": str(result.key), "digest": str(result.digest)}
                for name, result in results.items()
            },
            metrics=metrics,
            seconds=time.monotonic() - begun,
            profile=profile_entry(base),
        )


def _finish_run(run: PlannedRun, store: Store, listener: Listener) -> FinishedRun:
    outcome = run_stages(
        prepare_run(run.profile, store, _TitledListener(listener, run.title), only=RUN_STAGE)
    )
    error, failed = outcome.error, outcome.failed
    if error is None:
        return FinishedRun(run, outcome.results[-1])
    if isinstance(error, UsageError | MachineCannot) or failed is None or failed.name != RUN_STAGE:
        raise error
    return FinishedRun(run, failed, f"{error.what}: {error.why}" if error.why else error.what)


class _TitledListener:
    """Pass on the events of a run under its title; leave out the teacher's result, common to all runs."""

    def __init__(self, listener: Listener, title: str) -> None:
        self._listener = listener
        self._title = title

    def started(self, decision: Decision) -> None:
        """Pass on the start."""
        stage = replace(decision.stage, name=self._title)
        self._listener.started(replace(decision, stage=stage))

    def progress(self, stage_name: str) -> Progress:  # noqa: ARG002 - the interface passes it
        """Return the progress of the run."""
        return self._listener.progress(self._title)

    def finished(self, result: StageResult) -> None:
        """Pass on the result, if it is the run's own."""
        if result.name == RUN_STAGE:
            self._listener.finished(replace(result, name=self._title))

    def note(self, text: str) -> None:
        """Pass on the note."""
        self._listener.note(text)

    def waiting(self, stage_name: str, holder_text: str) -> None:  # noqa: ARG002 - the interface passes it
        """Pass on that the run waits for another process."""
        self._listener.waiting(self._title, holder_text)


def _distinct_profiles(
    base: LoadedProfile, specs: Sequence[MethodSpec], seed: int, memo: Path
) -> tuple[list[tuple[MethodSpec, LoadedProfile]], list[UnfitMethod]]:
    """Load the profile of every entry with the first seed; of entries with the same methods, return one."""
    by_methods: dict[str, tuple[MethodSpec, LoadedProfile]] = {}
    unfit = []
    for spec in specs:
        try:
            profile = _profile(base, spec, seed, memo)
        except ProfileError as error:
            if not spec.optional:
                faults = [replace(fault, file=f"--methods {spec.label}") for fault in error.faults]
                raise ProfileError(faults) from error
            unfit.append(UnfitMethod(spec.label, "; ".join(fault.message for fault in error.faults)))
            continue
        methods = json.dumps(profile.sections["distill"]["methods"])
        # A method's own name is a better label than "profile" if both have the same methods.
        if methods not in by_methods or by_methods[methods][0].label == "profile":
            by_methods[methods] = (spec, profile)
    return list(by_methods.values()), unfit


def _profile(base: LoadedProfile, spec: MethodSpec, seed: int, memo: Path) -> LoadedProfile:
    profile = base.with_overrides(run_overrides(base, spec, seed), memo)
    if memo.exists():
        profile.remember(memo)
    return profile


def run_overrides(base: LoadedProfile, spec: MethodSpec, seed: int) -> tuple[str, ...]:
    """Return the values of `--set` that make a run of the profile.

    The profile's own seed is not set again: the run then has the key of the artefact that `kdpipe run` made.
    """
    distill = base.sections["distill"]
    profile_seed = base.sections["seed"] if distill["seed"] is None else distill["seed"]
    seed_override = () if seed == profile_seed else (f"distill.seed={seed}",)
    return ("distill.baseline=false", "distill.keep=best", *spec.overrides(), *seed_override)
