"""Decide for each stage whether its artefact can be reused, and if not, why: for `plan` and for `run`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Protocol

import stages as stage_table
from pipeline import plugins
from pipeline.errors import StageError, UsageError
from pipeline.machine import installed_versions
from pipeline.paths import expand
from pipeline.stage import Stage
from pipeline.store.keys import canonical, differences, sha256_of
from pipeline.store.manifest import SCHEMA_VERSION, Manifest
from pipeline.store.store import Store

ReasonKind = Literal[
    "absent", "damaged", "data", "file", "forced", "input", "library", "machine", "profile", "version"
]


class Profile(Protocol):
    """The interface of a profile for the engine; `pipeline.profile.loading.LoadedProfile` has it.

    Attributes:
        path: The profile's file.
        name: The profile's name.
        sections: Every section with its defaults, JSON-ready.
        keyed: The same without the settings that are not part of a key.
    """

    @property
    def path(self) -> Path:
        """Return the profile's file."""

    @property
    def name(self) -> str:
        """Return the profile's name."""

    @property
    def sections(self) -> Mapping[str, Any]:
        """Return every section with its defaults, JSON-ready."""

    @property
    def keyed(self) -> Mapping[str, Any]:
        """Return every section without the settings that are not part of a key."""

    def settings(self, names: Iterable[str], /) -> SimpleNamespace:
        """Return these sections as typed objects."""

    def value(self, dotted: str, /) -> Any:
        """Return the value at a dotted key, or None."""

    def place(self, dotted: str, /) -> str:
        """Return where a dotted key was set: "file:line:column", "--set" or "default"."""


@dataclass(frozen=True)
class Reason:
    """One difference from the newest earlier artefact of the stage, or why no artefact can be reused.

    Attributes:
        kind: `profile` (`key` is the dotted key), `input` (`key` is the stage; `new` is None until it is
            remade), `version` (kdpipe's own: `key` is `version` if the stage's version changed; `libraries`
            or `sections` if another kdpipe composed this part of the key differently), `data`,
            `file` (`key` is the profile's key with its path), `library` (`key` is the distribution; None
            where it is not installed), `machine`, `absent` (there is no earlier artefact), `damaged` (`key`
            is the file), `forced`.
        key: What differs.
        old: Its value in the earlier artefact.
        new: Its value now.
    """

    kind: ReasonKind
    key: str = ""
    old: Any = None
    new: Any = None


@dataclass(frozen=True)
class Decision:
    """Whether a stage's artefact can be reused, and if not, why.

    Attributes:
        stage: The stage.
        status: `hit` if the artefact can be reused.
        key: The artefact's key; None until every input is made.
        digest: The content digest of the artefact that can be reused.
        path: The folder of that artefact.
        reasons: Why the stage has to run; empty for a hit.
        seconds_estimate: How long it took the last time, in seconds.
        manifest: The manifest of the artefact that can be reused.
        key_parts: What the key is the SHA-256 of.
    """

    stage: Stage
    status: Literal["hit", "stale"]
    key: str | None
    digest: str | None
    path: Path | None
    reasons: tuple[Reason, ...]
    seconds_estimate: float | None
    manifest: Manifest | None = field(default=None, repr=False)
    key_parts: Mapping[str, Any] = field(default_factory=dict, repr=False)


class KeyFacts:
    """The parts of a key beside the profile and the inputs: data, files, machine, versions of libraries.

    Each is determined once, so that all decisions of one run use the same values.
    """

    def __init__(self, profile: Profile, store: Store) -> None:
        self.profile = profile
        self.store = store
        self._values: dict[str, Any] = {}

    def of(self, stage: Stage) -> dict[str, Any]:
        """Return the parts `data`, `files`, `machine` of the stage's key, and `libraries` if it declares any.

        Raises:
            UsageError: The data or a file in the profile cannot be read.
        """
        libraries = {"libraries": self._libraries(stage)} if _every_library(stage) else {}
        return {
            **libraries,
            "data": self._cached("data", self._data) if stage.data else None,
            "files": {dotted: self._cached(f"file {dotted}", self._file, dotted) for dotted in stage.files},
            "machine": self._cached(f"machine {stage.name}", self._machine, stage),
        }

    def _cached(self, name: str, determine: Callable[..., Any], *arguments: Any) -> Any:
        if name not in self._values:
            self._values[name] = determine(*arguments)
        return self._values[name]

    def _data(self) -> str:
        fingerprint = resolve(stage_table.DATA_FINGERPRINT)
        return str(fingerprint(_attributes(self.profile.sections["data"]), self.store.digests.of))

    def _file(self, dotted: str) -> str | None:
        """Return the digest of the file at a key of the profile; None if the key is null."""
        value = self.profile.value(dotted)
        if value is None:
            return None
        try:
            path = expand(value)
            return self.store.digests.of(path)
        except OSError as error:
            why = f"{path.absolute()}: {error.strerror}"
            raise self._unreadable(dotted, why) from error
        except ValueError as error:
            raise self._unreadable(dotted, f"{value}: {error}") from error

    def _unreadable(self, dotted: str, why: str) -> UsageError:
        return UsageError(
            f"The file in {dotted} cannot be read",
            where=self.profile.place(dotted),
            why=why,
            hint=f"correct {dotted}, or set it to null",
        )

    def _libraries(self, stage: Stage) -> dict[str, str | None]:
        """Return the version of each distribution of the stage; None if it is not installed."""
        every = sorted({name for known in (*stage_table.STAGES, stage) for name in _every_library(known)})
        versions = self._cached(f"versions {' '.join(every)}", installed_versions, every)
        return {
            name: _release(versions[name], patch=stage.patch_releases) if name in versions else None
            for name in stage.libraries
        }

    def _machine(self, stage: Stage) -> Mapping[str, Any] | None:
        if stage.machine is None:
            return None
        sections = {
            name: self.profile.sections[name] for name in stage.reads if name in self.profile.sections
        }
        return dict(resolve(stage.machine)(_attributes(sections)))


def decide(
    stage: Stage,
    profile: Profile,
    store: Store,
    input_digests: Mapping[str, str | None],
    *,
    facts: KeyFacts | None = None,
) -> Decision:
    """Decide whether the store has the artefact that this stage would make. Write nothing.

    Args:
        stage: The stage.
        profile: The profile.
        store: Where the artefacts are.
        input_digests: By stage, the content digests of its inputs; None for an input that has to be remade.
        facts: The facts of this run; None to determine them.

    Raises:
        DataError: The data are missing.
        UsageError: A file in the profile cannot be read.
    """
    stage = stage_for_profile(stage, profile)
    parts = {
        "stage": stage.name,
        "version": stage.version,
        "profile": {name: profile.keyed[name] for name in stage.reads if name in profile.keyed},
        "inputs": {name: input_digests.get(name) for name in stage.inputs},
        **(facts or KeyFacts(profile, store)).of(stage),
    }
    key = None if None in parts["inputs"].values() else sha256_of(parts)
    inspection = store.inspect(stage.name, key) if key else None
    if key and inspection and inspection.manifest:
        return Decision(
            stage=stage,
            status="hit",
            key=key,
            digest=inspection.manifest.digest,
            path=store.artefact_path(stage.name, key),
            reasons=(),
            seconds_estimate=inspection.manifest.seconds,
            manifest=inspection.manifest,
            key_parts=parts,
        )
    earlier = store.newest(stage.name, profile_entry(profile))
    reasons: tuple[Reason, ...]
    if inspection and inspection.damage:
        damage = inspection.damage
        reasons = (Reason("damaged", damage.file, damage.expected, damage.actual),)
    elif inspection and inspection.newer:
        reasons = (Reason("absent", "schema_version", inspection.newer, SCHEMA_VERSION),)
    else:
        reasons = _changes(earlier.key_parts, parts) if earlier else ()
    return Decision(
        stage=stage,
        status="stale",
        key=key,
        digest=None,
        path=None,
        reasons=reasons or (Reason("absent"),),
        seconds_estimate=earlier.seconds if earlier else None,
        key_parts=parts,
    )


def make_plan(
    profile: Profile,
    store: Store,
    *,
    until: str | None = None,
    only: str | None = None,
    force: Collection[str] = (),
    stages: Sequence[Stage] = stage_table.STAGES,
    facts: KeyFacts | None = None,
) -> list[Decision]:
    """Decide for each stage of a run whether its artefact can be reused.

    Args:
        profile: The profile.
        store: Where the artefacts are.
        until: The last stage of the run; None for all.
        only: Only this stage and the stages that it needs.
        force: Stages that run even if they are cached.
        stages: The table of stages.
        facts: The facts of this run; None to determine them.

    Returns:
        One decision for each stage, in order.

    Raises:
        UsageError: A stage's name is unknown, the store cannot be used, or data are missing.
    """
    store.check()
    facts = facts or KeyFacts(profile, store)
    decisions = []
    digests: dict[str, str | None] = {}
    for stage in select_stages(stages, until=until, only=only, force=force):
        decision = decide(stage, profile, store, digests, facts=facts)
        if stage.name in force:
            decision = as_forced(decision)
        digests[stage.name] = decision.digest
        decisions.append(decision)
    return decisions


def stage_for_profile(stage: Stage, profile: Profile) -> Stage:
    """Return the stage for a profile: with its conditional `reads` and `libraries` if they apply."""
    return stage_for_sections(stage, profile.sections)


def stage_for_sections(stage: Stage, sections: Mapping[str, Any]) -> Stage:
    """Return the stage for the sections of a profile; see `stage_for_profile`."""
    more = stage.conditional
    if more is None or set(more.reads) <= set(stage.reads):
        return stage
    read = {name: sections[name] for name in stage.reads if name in sections}
    if not resolve(more.condition)(_attributes(read)):
        return stage
    return replace(stage, reads=(*stage.reads, *more.reads), libraries=(*stage.libraries, *more.libraries))


def as_forced(decision: Decision) -> Decision:
    """Return the decision for a stage that runs even if it is cached."""
    reasons = decision.reasons if decision.status == "stale" else ()
    return replace(
        decision,
        status="stale",
        digest=None,
        path=None,
        manifest=None,
        reasons=(Reason("forced"), *(reason for reason in reasons if reason.kind != "absent")),
    )


def artefacts_to_keep(decisions: Iterable[Decision], profile: Profile, store: Store) -> set[tuple[str, str]]:
    """Return the artefacts that `clean` leaves for a profile.

    Args:
        decisions: The plan of the profile.
        profile: The profile.
        store: Where the artefacts are.

    Returns:
        (stage, key) of what the plan reuses or would make. For a stage without a key, because its inputs have
        to be remade, the newest artefact of this profile.
    """
    artefacts = set()
    for decision in decisions:
        name = decision.stage.name
        if decision.key:
            artefacts.add((name, decision.key))
        elif newest := store.newest(name, profile_entry(profile)):
            artefacts.add((name, newest.key))
    return artefacts


def needed_stages(name: str, stages: Sequence[Stage] = stage_table.STAGES) -> list[Stage]:
    """Return a stage and all that it needs, in order.

    Raises:
        UsageError: The name is unknown.
    """
    names = {name}
    _check_names([name], stages)
    for stage in reversed(stages):
        if stage.name in names:
            names.update(stage.inputs)
    return [stage for stage in stages if stage.name in names]


def select_stages(
    stages: Sequence[Stage], *, until: str | None, only: str | None, force: Collection[str] = ()
) -> list[Stage]:
    """Return the stages of a run, in order.

    Args:
        stages: The table of stages.
        until: The last stage of the run; None for all.
        only: Only this stage and the stages that it needs.
        force: Stages that run even if they are cached.

    Raises:
        UsageError: A name is unknown, or a forced stage is not in this run.
    """
    _check_names([name for name in (until, only, *force) if name is not None], stages)
    selected = needed_stages(only, stages) if only else list(stages)
    if until:
        names = [stage.name for stage in stages]
        last = names.index(until)
        selected = [stage for stage in selected if names.index(stage.name) <= last]
    outside = sorted(set(force) - {stage.name for stage in selected})
    if outside:
        raise UsageError(
            f"--force names stage {outside[0]}, which is not part of this run",
            why=f"the run has {', '.join(stage.name for stage in selected)}",
            hint=f"leave out --force {outside[0]}, or run up to a later stage",
        )
    return selected


def profile_entry(profile: Profile) -> dict[str, str]:
    """Return the profile's entry in a manifest: its absolute path and its name."""
    return {"path": str(Path(profile.path).absolute()), "name": profile.name}


def resolve(reference: str) -> Callable[..., Any]:
    """Import the function at "module:function".

    Raises:
        StageError: It cannot be imported.
    """
    try:
        function: Callable[..., Any] = plugins.imported(reference)
    except (ImportError, AttributeError) as error:
        raise StageError(
            f"kdpipe cannot load {reference}",
            why=f"{type(error).__name__}: {error}",
            hint="reinstall kdpipe: pip install --force-reinstall kdpipe",
        ) from error
    return function


def _check_names(names: Iterable[str], stages: Sequence[Stage]) -> None:
    known = [stage.name for stage in stages]
    for name in names:
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"There is no stage {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
                why=f"the stages are {', '.join(known)}",
                hint="name one of them",
            )


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Reason, ...]:
    """Return a reason for every part of the key that differs.

    A section or a library that only one of the two keys has is no reason by itself: it follows from another
    one (a setting that brings it in), or from kdpipe's own version, which then is the reason.
    """
    reasons = []
    if old["version"] != new["version"]:
        reasons.append(Reason("version", "version", old["version"], new["version"]))
    elif "libraries" in new and "libraries" not in old:
        reasons.append(Reason("version", "libraries", None, new["libraries"]))
    kinds: tuple[tuple[ReasonKind, str], ...] = (
        ("profile", "profile"),
        ("input", "inputs"),
        ("file", "files"),
        ("machine", "machine"),
        ("library", "libraries"),
    )
    for kind, part in kinds:
        before, now = old.get(part) or {}, new.get(part) or {}
        if kind in ("profile", "library"):
            both = before.keys() & now.keys()
            before, now = ({name: value[name] for name in both} for value in (before, now))
        reasons += [Reason(kind, key, a, b) for key, a, b in _flat(kind, before, now)]
    if old.get("data") != new.get("data"):
        reasons.append(Reason("data", "data", old.get("data"), new.get("data")))
    if not reasons and canonical(old) != canonical(new):
        sections = (sorted(parts.get("profile") or ()) for parts in (old, new))
        reasons.append(Reason("version", "sections", *sections))
    return tuple(reasons)


def _flat(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    if kind in ("profile", "machine"):
        return differences(old, new)
    # The names of inputs and files are whole names, although a file's has dots in it. An input that has to be
    # remade (None) is a reason even if the earlier artefact had no such input.
    names = sorted(old.keys() | new.keys())
    return [
        (name, old.get(name), new.get(name))
        for name in names
        if canonical(old.get(name)) != canonical(new.get(name)) or (name in old) != (name in new)
    ]


def _release(version: str, *, patch: bool) -> str:
    """Return a version without its local part, and without `patch` only its first two numbers.

    `2.14.1+cu130` becomes `2.14.1`, or `2.14`.
    """
    public = version.partition("+")[0]
    first_two = re.match(r"\d+\.\d+", public)
    return first_two.group() if first_two and not patch else public


def _every_library(stage: Stage) -> tuple[str, ...]:
    return stage.libraries + (stage.conditional.libraries if stage.conditional else ())


def _attributes(value: Any) -> Any:
    """Return JSON values with mappings as namespaces, at every depth."""
    if isinstance(value, Mapping):
        return SimpleNamespace(**{key: _attributes(entry) for key, entry in value.items()})
    if isinstance(value, list | tuple):
        return [_attributes(entry) for entry in value]
    return value
