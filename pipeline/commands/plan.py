"""`kdpipe plan`: print for each stage whether it is cached, or why it has to run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from pipeline.commands.base import Command, Option
from pipeline.commands.options import (
    force_option,
    json_option,
    profile_argument,
    set_option,
    store_option,
    until_option,
)
from pipeline.commands.profiles import open_profile
from pipeline.console.console import QUIET, VERBOSE, Console
from pipeline.console.json_documents import planned_entry, reasons_in_words
from pipeline.console.session import Session
from pipeline.console.tables import SHORT_DIGEST, duration, table
from pipeline.errors import EXIT_DONE, EXIT_STAGE_FAILED, EXIT_STALE, EXIT_USAGE

if TYPE_CHECKING:
    from pipeline.running.plan import Decision


def _plan(
    profile: str,
    overrides: tuple[str, ...],
    store: str | None,
    until: str | None,
    force: tuple[str, ...],
    check: bool,
) -> int:
    """Print the plan of the profile, and return EXIT_STALE if `check` and a stage is stale."""
    from pipeline.running.plan import make_plan

    session = click.get_current_context().ensure_object(Session)
    loaded, opened = open_profile(session, profile, overrides, store)
    decisions = make_plan(loaded, opened, until=until, force=force)
    console = session.console
    if session.json:
        session.print_json(
            **{**session.so_far(), "stages": [planned_entry(decision) for decision in decisions]}
        )
    else:
        console.result(_in_words(decisions, console))
    stale = [decision.stage.name for decision in decisions if decision.status == "stale"]
    if not (check and stale):
        return EXIT_DONE
    console.line(f"stale: {', '.join(stale)}", at=QUIET)
    return EXIT_STALE


def _in_words(decisions: Sequence[Decision], console: Console) -> str:
    """Return the plan as a table, and how long the stale stages take together."""
    arrow = console.symbol("to", console.out)
    rows = []
    for decision in decisions:
        if decision.status == "hit":
            rows.append([decision.stage.name, "cached", (decision.digest or "")[:SHORT_DIGEST], ""])
            continue
        why = reasons_in_words(decision.reasons, arrow, every=console.verbosity >= VERBOSE)
        estimate = decision.seconds_estimate
        rows.append(
            [decision.stage.name, "stale", "\n".join(why), "" if estimate is None else duration(estimate)]
        )
    lines = [table(("stage", "status", "content or why", "estimate"), rows, "lllr"), ""]
    stale = [decision for decision in decisions if decision.status == "stale"]
    if not stale:
        lines.append("everything is cached")
        return "\n".join(lines)
    estimates = [decision.seconds_estimate for decision in stale if decision.seconds_estimate is not None]
    text = f"{len(stale)} of {len(decisions)} stages have to run"
    if estimates:
        text += f", about {duration(sum(estimates))}"
        unknown = len(stale) - len(estimates)
        text += f" and {unknown} of unknown length" if unknown else ", by the time of earlier runs"
    lines.append(text)
    return "\n".join(lines)


plan = Command(
    "plan",
    help="Print for each stage whether it is cached, or why it has to run.\n\nNothing is written.",
    params=[
        profile_argument(),
        set_option(),
        until_option(),
        force_option(),
        Option(["--check"], is_flag=True, heading="Output", help="Exit with 5 if a stage is stale (for CI)."),
        json_option(),
        store_option(),
    ],
    callback=_plan,
    examples=(
        "kdpipe plan profiles/resnet_to_mobilenet.yaml",
        "kdpipe plan profiles/resnet_to_mobilenet.yaml --set distill.epochs=40",
        "kdpipe plan profiles/resnet_to_mobilenet.yaml --check --json",
    ),
    exit_codes=(EXIT_DONE, EXIT_STAGE_FAILED, EXIT_USAGE, EXIT_STALE),
)
