"""What has to be done, and why: one decision for each stage, for `plan` and `run` alike."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Protocol

import stages as stage_table
from pipeline import plugins
from pipeline.errors import StageError, UsageError
from pipeline.paths import expand
from pipeline.stage import Stage
from pipeline.store.keys import canonical, differences, sha256_of
from pipeline.store.manifest import SCHEMA_VERSION, Manifest
from pipeline.store.store import Store

ReasonKind = Literal["absent", "damaged", "data", "file", "forced", "input", "machine", "profile", "version"]


class Profile(Protocol):
    """What the engine asks of a profile; `pipeline.profile.loading.LoadedProfile` answers.

    sections: all that the profile says, with defaults, JSON-ready. keyed: the same without what
    does not count for keys.
    """

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def sections(self) -> Mapping[str, Any]: ...
    @property
    def keyed(self) -> Mapping[str, Any]: ...

    def settings(self, names: Iterable[str], /) -> SimpleNamespace: ...
    def value(self, dotted: str, /) -> Any: ...
    def place(self, dotted: str, /) -> str: ...


@dataclass(frozen=True)
class Reason:
    """One difference from the newest earlier artefact of the stage, or why there is none to reuse.

    kind: `profile` (`key` is the dotted key), `input` (`key` is the stage; `new` is None while it
    has yet to be remade), `version`, `data`, `file` (`key` is the profile's key that names it),
    `machine`, `absent` (nothing earlier), `damaged` (`key` is the file), `forced`.
    """

    kind: ReasonKind
    key: str = ""
    old: Any = None
    new: Any = None


@dataclass(frozen=True)
class Decision:
    """Whether a stage can be reused, and why not.

    key: None while an input has yet to be remade. digest, path, manifest: of the artefact found.
    seconds_estimate: what making it took the last time. key_parts: what the key was made from.
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


class Facts:
    """What the world says of a profile: fingerprint of its data, digests of its files, the machine.

    Each is asked for once, so that all decisions of one run stand on the same answers.
    """

    def __init__(self, profile: Profile, store: Store) -> None:
        self.profile = profile
        self.store = store
        self._known: dict[str, Any] = {}

    def of(self, stage: Stage) -> dict[str, Any]:
        """The parts `data`, `files` and `machine` of the stage's key. Raises UsageError."""
        return {
            "data": self._once("data", self._data) if stage.data else None,
            "files": {dotted: self._once(f"file {dotted}", self._file, dotted) for dotted in stage.files},
            "machine": self._once(f"machine {stage.name}", self._machine, stage),
        }

    def _once(self, name: str, ask: Callable[..., Any], *arguments: Any) -> Any:
        if name not in self._known:
            self._known[name] = ask(*arguments)
        return self._known[name]

    def _data(self) -> str:
        fingerprint = resolve(stage_table.DATA_FINGERPRINT)
        return str(fingerprint(_attributes(self.profile.sections["data"]), self.store.digests.of))

    def _file(self, dotted: str) -> str | None:
        """The digest of the file that a key of the profile names; None if it names none."""
        value = self.profile.value(dotted)
        if value is None:
            return None
        try:
            path = expand(value)
            return self.store.digests.of(path)
        except OSError as error:
            why = f"{path.absolute()}: {error.strerror}"
            raise self._unread(dotted, why) from error
        except ValueError as error:
            raise self._unread(dotted, f"{value}: {error}") from error

    def _unread(self, dotted: str, why: str) -> UsageError:
        return UsageError(
            f"The file that {dotted} names cannot be read",
            where=self.profile.place(dotted),
            why=why,
            hint=f"correct {dotted}, or set it to null",
        )

    def _machine(self, stage: Stage) -> Mapping[str, Any] | None:
        if stage.machine is None:
            return None
        read = {name: self.profile.sections[name] for name in stage.reads if name in self.profile.sections}
        return dict(resolve(stage.machine)(_attributes(read)))


def decide(
    stage: Stage,
    profile: Profile,
    store: Store,
    input_digests: Mapping[str, str | None],
    *,
    facts: Facts | None = None,
) -> Decision:
    """Whether the store holds what this stage would make; changes nothing.

    input_digests: of the stages it reads, the artefacts' content digests; None for one that has
        yet to be remade.
    Raises UsageError (DataError) if the data or a file that the profile names is not there.
    """
    parts = {
        "stage": stage.name,
        "version": stage.version,
        "profile": {name: profile.keyed[name] for name in stage.reads if name in profile.keyed},
        "inputs": {name: input_digests.get(name) for name in stage.inputs},
        **(facts or Facts(profile, store)).of(stage),
    }
    key = None if None in parts["inputs"].values() else sha256_of(parts)
    found = store.inspect(stage.name, key) if key else None
    if key and found and found.manifest:
        return Decision(
            stage=stage,
            status="hit",
            key=key,
            digest=found.manifest.digest,
            path=store.artefact_path(stage.name, key),
            reasons=(),
            seconds_estimate=found.manifest.seconds,
            manifest=found.manifest,
            key_parts=parts,
        )
    earlier = store.newest(stage.name, made_for(profile))
    reasons: tuple[Reason, ...]
    if found and found.damage:
        damage = found.damage
        reasons = (Reason("damaged", damage.file, damage.expected, damage.found),)
    elif found and found.newer:
        reasons = (Reason("absent", "schema_version", found.newer, SCHEMA_VERSION),)
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
    facts: Facts | None = None,
) -> list[Decision]:
    """The decisions for all stages, or up to `until`, or for stage `only` and what it needs.

    Raises UsageError for an unknown stage, a store that cannot be used, or missing data.
    """
    store.check()
    facts = facts or Facts(profile, store)
    decisions = []
    digests: dict[str, str | None] = {}
    for stage in select(stages, until=until, only=only, force=force):
        decision = decide(stage, profile, store, digests, facts=facts)
        if stage.name in force:
            decision = forced(decision)
        digests[stage.name] = decision.digest
        decisions.append(decision)
    return decisions


def forced(decision: Decision) -> Decision:
    """The same decision of a stage that is to run whatever the store holds."""
    reasons = decision.reasons if decision.status == "stale" else ()
    return replace(
        decision,
        status="stale",
        digest=None,
        path=None,
        manifest=None,
        reasons=(Reason("forced"), *(reason for reason in reasons if reason.kind != "absent")),
    )


def to_keep(decisions: Iterable[Decision], profile: Profile, store: Store) -> set[tuple[str, str]]:
    """(stage, key) of what a plan reaches: what it reuses or would make, and for a stage whose
    inputs have yet to be remade the newest artefact made for this profile."""
    kept = set()
    for decision in decisions:
        name = decision.stage.name
        if decision.key:
            kept.add((name, decision.key))
        elif newest := store.newest(name, made_for(profile)):
            kept.add((name, newest.key))
    return kept


def needed(name: str, stages: Sequence[Stage] = stage_table.STAGES) -> list[Stage]:
    """A stage and all that it needs, in order. Raises UsageError for an unknown name."""
    wanted = {name}
    _known_names([name], stages)
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted.update(stage.inputs)
    return [stage for stage in stages if stage.name in wanted]


def select(
    stages: Sequence[Stage], *, until: str | None, only: str | None, force: Collection[str] = ()
) -> list[Stage]:
    """The stages a command is about. Raises UsageError for an unknown or an idle name."""
    _known_names([name for name in (until, only, *force) if name is not None], stages)
    chosen = needed(only, stages) if only else list(stages)
    if until:
        names = [stage.name for stage in stages]
        last = names.index(until)
        chosen = [stage for stage in chosen if names.index(stage.name) <= last]
    idle = sorted(set(force) - {stage.name for stage in chosen})
    if idle:
        raise UsageError(
            f"Stage {idle[0]} is to be forced, but takes no part in this run",
            why=f"the run has {', '.join(stage.name for stage in chosen)}",
            hint=f"leave out --force {idle[0]}, or run further",
        )
    return chosen


def made_for(profile: Profile) -> dict[str, str]:
    """How a manifest tells the profile it was made for."""
    return {"path": str(Path(profile.path).absolute()), "name": profile.name}


def resolve(reference: str) -> Callable[..., Any]:
    """The function that "module:function" names. Raises StageError if it cannot be had."""
    try:
        function: Callable[..., Any] = plugins.imported(reference)
    except (ImportError, AttributeError) as error:
        raise StageError(
            f"kdpipe cannot load {reference}",
            why=f"{type(error).__name__}: {error}",
            hint="install kdpipe anew: pip install --force-reinstall kdpipe",
        ) from error
    return function


def _known_names(names: Iterable[str], stages: Sequence[Stage]) -> None:
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
    """Every part of the key that differs, told."""
    reasons = []
    if old["version"] != new["version"]:
        reasons.append(Reason("version", "version", old["version"], new["version"]))
    kinds: tuple[tuple[ReasonKind, str], ...] = (
        ("profile", "profile"),
        ("input", "inputs"),
        ("file", "files"),
        ("machine", "machine"),
    )
    for kind, part in kinds:
        before, now = old.get(part) or {}, new.get(part) or {}
        reasons += [Reason(kind, key, a, b) for key, a, b in _flat(kind, before, now)]
    if old.get("data") != new.get("data"):
        reasons.append(Reason("data", "data", old.get("data"), new.get("data")))
    return tuple(reasons)


def _flat(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    if kind in ("profile", "machine"):
        return differences(old, new)
    # The names of inputs and files are whole names, though a file's has dots in it. An input that
    # has yet to be remade (None) is told even where there was none before.
    names = sorted(old.keys() | new.keys())
    return [
        (name, old.get(name), new.get(name))
        for name in names
        if canonical(old.get(name)) != canonical(new.get(name)) or (name in old) != (name in new)
    ]


def _attributes(value: Any) -> Any:
    """JSON values as attributes: mappings become namespaces, at every depth."""
    if isinstance(value, Mapping):
        return SimpleNamespace(**{key: _attributes(entry) for key, entry in value.items()})
    if isinstance(value, list | tuple):
        return [_attributes(entry) for entry in value]
    return value
