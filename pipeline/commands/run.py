"""`kdpipe run` and the subcommand of each stage: bring artefacts up to date, print the figures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from pipeline.commands.base import RUN_EXIT_CODES, Command
from pipeline.commands.options import (
    force_option,
    json_option,
    on_option,
    profile_argument,
    remote_option,
    set_option,
    store_option,
    track_option,
    until_option,
)
from pipeline.commands.profiles import open_profile
from pipeline.commands.up_to_date import bring_up_to_date
from pipeline.console.session import Session
from pipeline.errors import EXIT_DONE
from stages import STAGES

if TYPE_CHECKING:
    from pipeline.profile.loading import LoadedProfile
    from pipeline.running.run_state import StageResult
    from pipeline.tracking import Tracking


def _run(
    profile: str,
    overrides: tuple[str, ...],
    store: str | None,
    remote: str | None,
    force: tuple[str, ...],
    until: str | None,
    on: str | None,
    track: str | None,
    only: str | None = None,
) -> int:
    """Bring the profile up to date, print the figures, and log the run to MLflow."""
    session = click.get_current_context().ensure_object(Session)
    loaded, opened = open_profile(session, profile, overrides, store)
    tracking = _open_tracking(track, session, loaded)
    outcome = bring_up_to_date(
        session, loaded, opened, until=until, only=only, force=force, remote=remote, on=on
    )
    if outcome.is_complete and not session.json:
        session.console.result(_in_words(outcome.results))
    if outcome.error is None and session.json:
        session.print_json(**session.so_far())
    if tracking:
        tracking.log_run(outcome.results, failed=outcome.error is not None)
    outcome.raise_for_result()
    return EXIT_DONE


def _open_tracking(uri: str | None, session: Session, profile: LoadedProfile) -> Tracking | None:
    if uri is None:
        return None
    from pipeline.tracking import Tracking

    return Tracking(uri, profile, session.console)


def _in_words(results: Sequence[StageResult]) -> str:
    """Return the scorecard, or the last stage's figures before `measure`; then the paths of the files."""
    from pipeline.console.stage_figures import scorecard, shipped, stage_figures

    last = results[-1]
    paths = {result.name: result.path for result in results if result.path}
    if "measure" in paths:
        figures = scorecard(paths["measure"], paths.get("gate"))
    else:
        figures = stage_figures(last.name, last.path, last.metrics) if last.path else ""
    lines = [line for result in results if result.path for line in shipped(result.name, result.path)]
    if not lines:
        lines = [f"{last.name}  {last.path}"]
    return "\n".join([figures, "", *lines]).lstrip("\n")


def _options() -> list[click.Parameter]:
    return [
        profile_argument(),
        set_option(),
        until_option(),
        force_option(),
        json_option(),
        store_option(),
        remote_option(),
        on_option(),
        track_option(),
    ]


run = Command(
    "run",
    help="Bring every stage of a profile up to date, and print the scorecard.",
    params=_options(),
    callback=_run,
    examples=(
        "kdpipe run profiles/resnet_to_mobilenet.yaml",
        "kdpipe run profiles/resnet_to_mobilenet.yaml --set distill.epochs=5 --until evaluate",
        "kdpipe run profiles/resnet_to_mobilenet.yaml --json > run.json",
    ),
    exit_codes=RUN_EXIT_CODES,
)


def stage_command(name: str) -> Command:
    """Return the subcommand of one stage."""
    stage = next(stage for stage in STAGES if stage.name == name)
    needs = (
        f"Brings the stages that it needs ({', '.join(stage.inputs)}) up to date first."
        if stage.inputs
        else ""
    )
    return Command(
        name,
        help=f"{stage.summary}\n\n{needs}".strip(),
        params=_options(),
        callback=partial(_run, only=name),
        examples=(
            f"kdpipe {name} profiles/resnet_to_mobilenet.yaml",
            f"kdpipe {name} profiles/resnet_to_mobilenet.yaml --force {name}",
            f"kdpipe {name} profiles/resnet_to_mobilenet.yaml --json",
        ),
        exit_codes=RUN_EXIT_CODES,
    )
