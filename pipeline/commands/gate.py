"""`kdpipe gate` and `kdpipe pick`: the profile's limits judged, and the target to ship under them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.base import EVERY_RUN, Command, Option
from pipeline.commands.options import (
    force_option,
    json_option,
    profile_argument,
    remote_option,
    set_option,
    store_option,
)
from pipeline.commands.profiles import open_profile
from pipeline.commands.up_to_date import bring_up_to_date
from pipeline.console.console import QUIET
from pipeline.console.session import Session
from pipeline.errors import EXIT_DONE, GateMissed, KdpipeError, UsageError
from stages import PICK

if TYPE_CHECKING:
    from pipeline.profile.loading import LoadedProfile
    from pipeline.running.run_state import StageResult
    from pipeline.store.store import Store


def _gate(
    profile: str,
    overrides: tuple[str, ...],
    force: tuple[str, ...],
    store: str | None,
    remote: str | None,
    strict: bool,
    junit: str | None,
    github: bool,
) -> int:
    from pipeline.console.gates_text import gates_in_words, github_annotations, pick_in_words

    session = click.get_current_context().ensure_object(Session)
    done = _judged(session, profile, overrides, store, remote, force, strict=strict)
    found = done.found
    if junit:
        _write_junit(Path(junit), found, strict=strict)
    if github:
        places = {number: done.profile.place(f"gates.{number}") for number in range(len(found["gates"]))}
        for line in github_annotations(found, places, strict=strict):
            # GitHub reads both streams; standard output is the document's where one was asked for.
            session.console.line(line, at=QUIET) if session.json else session.console.document(line)
    if done.ending:
        if not session.json:
            session.console.result("\n".join(gates_in_words(found)))
        raise done.ending
    if session.json:
        session.print_json(**session.so_far())
    else:
        session.console.result("\n".join([*gates_in_words(found), *pick_in_words(found["pick"])]))
    return EXIT_DONE


def _pick(
    profile: str,
    overrides: tuple[str, ...],
    force: tuple[str, ...],
    store: str | None,
    remote: str | None,
) -> int:
    from pipeline.console.gates_text import device_in_words, front_in_words, pick_in_words

    session = click.get_current_context().ensure_object(Session)
    done = _judged(session, profile, overrides, store, remote, force, strict=False)
    pick = done.found["pick"]
    on_devices = _on_devices(done)
    about = session.so_far()
    session.so_far = lambda: {**about, "devices": on_devices}
    if not session.json:
        lines = [*pick_in_words(pick, label="ship"), "", *front_in_words(pick)]
        session.console.result(
            "\n".join([*lines, *(line for one in on_devices for line in device_in_words(one))])
        )
    if pick["target"] is None:
        raise GateMissed(
            "There is no target to ship",
            where="stage gate",
            why="\n".join(f"{one['target']} {one['why']}" for one in pick["rejected"]) or pick["reason"],
            hint=f"kdpipe gate {profile} shows every limit beside what was measured",
        )
    if session.json:
        session.print_json(**session.so_far())
    return EXIT_DONE


@dataclass(frozen=True)
class _Judged:
    """found: the content of gates.json. ending: the error that a missed gate or a target that cannot be
    built is, for afterwards."""

    profile: LoadedProfile
    store: Store
    results: Sequence[StageResult]
    found: dict[str, Any]
    ending: KdpipeError | None


def _on_devices(done: _Judged) -> list[dict[str, Any]]:
    """What to ship to each device that `kdpipe device measure` has measured these files on."""
    from pipeline.devices.picks import device_picks
    from pipeline.running.plan import resolve

    (measured,) = (one for one in done.results if one.name == "measure")
    assert measured.path is not None
    scorecard = json.loads((measured.path / "scorecard.json").read_text(encoding="utf-8"))
    return device_picks(
        done.store,
        str(measured.digest),
        done.found,
        scorecard["float_top1"]["student"],
        resolve(PICK),
    )


def _judged(
    session: Session,
    profile: str,
    overrides: Sequence[str],
    store: str | None,
    remote: str | None,
    force: Sequence[str],
    *,
    strict: bool,
) -> _Judged:
    """Brings `gate` up to date. Raises what keeps the gates from being judged."""
    from pipeline.console.gates_text import read_gates

    loaded, opened = open_profile(session, profile, overrides, store)
    outcome = bring_up_to_date(
        session, loaded, opened, only="gate", force=force, remote=remote, strict=strict
    )
    outcome.raise_if_incomplete()
    folder = outcome.results[-1].path
    assert folder is not None  # the run is complete
    found = read_gates(folder)
    about = session.so_far()
    session.so_far = lambda: {
        **about,
        "strict": strict,
        **{name: value for name, value in found.items() if name != "schema_version"},
    }
    return _Judged(loaded, opened, outcome.results, found, outcome.error)


def _write_junit(file: Path, found: dict[str, Any], *, strict: bool) -> None:
    from pipeline.junit import junit

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(junit(found["judgements"], strict=strict), encoding="utf-8")
    except OSError as error:
        raise UsageError(
            "The JUnit file cannot be written",
            where=str(file),
            why=error.strerror or str(error),
            hint="name another file with --junit",
        ) from error


def _options() -> list[click.Parameter]:
    return [
        profile_argument(),
        set_option(),
        force_option(),
        json_option(),
        store_option(),
        remote_option(),
    ]


gate = Command(
    "gate",
    help="Judge the profile's gates on what was measured.\n\n"
    "Brings up to date what it needs (evaluate, measure) first. A gate is missed only if the whole 95 % "
    "interval lies beyond its limit, and undecided if the limit lies inside.",
    params=[
        *_options(),
        Option(["--strict"], is_flag=True, heading="Gates", help="An undecided gate counts as missed."),
        Option(
            ["--junit"],
            type=click.Path(dir_okay=False),
            metavar="FILE",
            heading="Output",
            help="Write the judgements to this file as JUnit XML.",
        ),
        Option(
            ["--github"],
            is_flag=True,
            heading="Output",
            help="Print GitHub annotations at the profile's lines for what is missed or undecided.",
        ),
    ],
    callback=_gate,
    examples=(
        "kdpipe gate profiles/resnet_to_mobilenet.yaml",
        "kdpipe gate profiles/resnet_to_mobilenet.yaml --strict --junit gates.xml",
        "kdpipe gate profiles/resnet_to_mobilenet.yaml --github",
    ),
    exit_codes=EVERY_RUN,
)

pick = Command(
    "pick",
    help="Name the target to ship under the profile's gates, and why no other.\n\n"
    "The fastest of those that pass; of several whose speed cannot be told apart the most accurate, then the "
    "smallest. Brings up to date what it needs first; exit code 3 only if there is no target to ship.",
    params=_options(),
    callback=_pick,
    examples=(
        "kdpipe pick profiles/resnet_to_mobilenet.yaml",
        "kdpipe pick profiles/resnet_to_mobilenet.yaml --set gates='[{metric: accuracy_drop, max: 0.5}]'",
        "kdpipe pick profiles/resnet_to_mobilenet.yaml --json",
    ),
    exit_codes=EVERY_RUN,
)
