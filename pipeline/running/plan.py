"""Decide for each stage whether its artefact can be reused, and if not, why: for `plan` and for `run`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import stages as stage_table
from pipeline.running.key_facts import KeyFacts, Profile, stage_for_profile
from pipeline.running.stage_selection import select_stages
from pipeline.stage import Stage
from pipeline.store.keys import canonical, differences, sha256_of
from pipeline.store.manifest import SCHEMA_VERSION, Manifest
from pipeline.store.store import Store

ReasonKind = Literal[
    "absent", "damaged", "data", "file", "forced", "input", "library", "machine", "profile", "version"
]


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


def profile_entry(profile: Profile) -> dict[str, str]:
    """Return the profile's entry in a manifest: its absolute path and its name."""
    return {"path": str(Path(profile.path).absolute()), "name": profile.name}


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
