"""`kdpipe gate` and `kdpipe pick`: judge the profile's gates, and print the target to ship under them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.base import RUN_EXIT_CODES, Command, Option
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
    judged = _bring_gates_up_to_date(session, profile, overrides, store, remote, force, strict=strict)
    gates = judged.gates
    if junit:
        _write_junit(Path(junit), gates, strict=strict)
    if github:
        places = {number: judged.profile.place(f"gates.{number}") for number in range(len(gates["gates"]))}
        for line in github_annotations(gates, places, strict=strict):
            # GitHub reads both streams; with --json, standard output holds only the document.
            session.console.line(line, at=QUIET) if session.json else session.console.document(line)
    if judged.error:
        if not session.json:
            session.console.result("\n".join(gates_in_words(gates)))
        raise judged.error
    if session.json:
        session.print_json(**session.so_far())
    else:
        session.console.result("\n".join([*gates_in_words(gates), *pick_in_words(gates["pick"])]))
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
    judged = _bring_gates_up_to_date(session, profile, overrides, store, remote, force, strict=False)
    pick = judged.gates["pick"]
    device_entries = _device_picks(judged)
    fields = session.so_far()
    session.so_far = lambda: {**fields, "devices": device_entries}
    if not session.json:
        lines = [*pick_in_words(pick, label="ship"), "", *front_in_words(pick)]
        session.console.result(
            "\n".join([*lines, *(line for entry in device_entries for line in device_in_words(entry))])
        )
    if pick["target"] is None:
        raise GateMissed(
            "There is no target to ship",
            where="stage gate",
            why="\n".join(f"{target['target']} {target['why']}" for target in pick["rejected"])
            or pick["reason"],
            hint=f"kdpipe gate {profile} prints every limit and the measured value",
        )
    if session.json:
        session.print_json(**session.so_far())
    return EXIT_DONE


@dataclass(frozen=True)
class _JudgedProfile:
    """A profile with its judged gates.

    Attributes:
        profile: The profile.
        store: Its store.
        results: The results of the stages up to gate.
        gates: The content of `gates.json`.
        error: The error of a missed gate, or of a target that cannot be built; raised after the output.
    """

    profile: LoadedProfile
    store: Store
    results: Sequence[StageResult]
    gates: dict[str, Any]
    error: KdpipeError | None


def _device_picks(judged: _JudgedProfile) -> list[dict[str, Any]]:
    """Return the target to ship to each device on which `kdpipe device measure` has measured these files."""
    from pipeline.devices.picks import device_picks
    from pipeline.running.key_facts import resolve

    (measured,) = (result for result in judged.results if result.name == "measure")
    assert measured.path is not None
    scorecard = json.loads((measured.path / "scorecard.json").read_text(encoding="utf-8"))
    return device_picks(
        judged.store,
        str(measured.digest),
        judged.gates,
        scorecard["float_top1"]["student"],
        resolve(PICK),
    )


def _bring_gates_up_to_date(
    session: Session,
    profile: str,
    overrides: Sequence[str],
    store: str | None,
    remote: str | None,
    force: Sequence[str],
    *,
    strict: bool,
) -> _JudgedProfile:
    """Bring the stage gate up to date.

    Raises:
        KdpipeError: The gates cannot be judged.
    """
    from pipeline.console.gates_text import read_gates

    loaded, opened = open_profile(session, profile, overrides, store)
    outcome = bring_up_to_date(
        session, loaded, opened, only="gate", force=force, remote=remote, strict=strict
    )
    outcome.raise_if_incomplete()
    folder = outcome.results[-1].path
    assert folder is not None  # the run is complete
    gates = read_gates(folder)
    fields = session.so_far()
    session.so_far = lambda: {
        **fields,
        "strict": strict,
        **{name: value for name, value in gates.items() if name != "schema_version"},
    }
    return _JudgedProfile(loaded, opened, outcome.results, gates, outcome.error)


def _write_junit(file: Path, gates: dict[str, Any], *, strict: bool) -> None:
    from pipeline.junit import junit

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(junit(gates["judgements"], strict=strict), encoding="utf-8")
    except OSError as error:
        raise UsageError(
            "The JUnit file cannot be written",
            where=str(file),
            why=error.strerror or str(error),
            hint="give another file with --junit",
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
    help="Judge the profile's gates by the measured values.\n\n"
    "Brings the stages that it needs (evaluate, measure) up to date first. A gate is missed only if the "
    "whole 95 % interval is beyond its limit, and undecided if the limit is inside the interval.",
    params=[
        *_options(),
        Option(["--strict"], is_flag=True, heading="Gates", help="Count an undecided gate as missed."),
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
            help="Print a GitHub annotation at the profile's line of each gate that is missed or undecided.",
        ),
    ],
    callback=_gate,
    examples=(
        "kdpipe gate profiles/resnet_to_mobilenet.yaml",
        "kdpipe gate profiles/resnet_to_mobilenet.yaml --strict --junit gates.xml",
        "kdpipe gate profiles/resnet_to_mobilenet.yaml --github",
    ),
    exit_codes=RUN_EXIT_CODES,
)

pick = Command(
    "pick",
    help="Print the target to ship under the profile's gates, and why the others were rejected.\n\n"
    "This is the fastest target that passes. Among targets whose speeds cannot be distinguished, it is the "
    "most accurate, then the smallest. Brings the stages that it needs up to date first. Exits with 3 only "
    "if there is no target to ship.",
    params=_options(),
    callback=_pick,
    examples=(
        "kdpipe pick profiles/resnet_to_mobilenet.yaml",
        "kdpipe pick profiles/resnet_to_mobilenet.yaml --set gates='[{metric: accuracy_drop, max: 0.5}]'",
        "kdpipe pick profiles/resnet_to_mobilenet.yaml --json",
    ),
    exit_codes=RUN_EXIT_CODES,
)
