"""`kdpipe run` and the subcommand of each stage: bring artefacts up to date, show what came out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import click

from pipeline.commands.base import (
    EVERY_RUN,
    Command,
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
from pipeline.commands.profiles import open_profile, remember_profile
from pipeline.console.console import guarded_output
from pipeline.console.json_documents import result_entry
from pipeline.console.session import Session
from pipeline.errors import EXIT_DONE, KdpipeError
from stages import STAGES

if TYPE_CHECKING:
    from pipeline.profile.loading import LoadedProfile
    from pipeline.running.run_state import Execute, StageResult
    from pipeline.store.remote import Remote
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
    from pipeline.console.progress import ConsoleListener
    from pipeline.running.runner import run as bring_up_to_date

    session = click.get_current_context().ensure_object(Session)
    loaded, opened = open_profile(session, profile, overrides, store)
    about = session.so_far()
    results: Sequence[StageResult] = ()
    session.so_far = lambda: {**about, "stages": [result_entry(result) for result in results]}
    tracking = _open_tracking(track, session, loaded)
    session.resumable = True
    try:
        with (
            guarded_output(session.console),
            _executing(on, loaded) as execute,
            ConsoleListener(session.console, tuple(stage.name for stage in STAGES)) as listener,
        ):
            shared = _open_remote(remote)
            results = bring_up_to_date(
                loaded,
                opened,
                listener,
                until=until,
                only=only,
                force=force,
                remote=shared,
                execute=execute,
            )
    except BaseException as error:
        results = getattr(error, "results", results)
        finished = isinstance(error, KdpipeError) and all(result.path for result in results)
        if finished and results and not session.json:
            # All is made and measured; it is only that something required was not among it.
            session.console.result(_in_words(results))
        if tracking and isinstance(error, KdpipeError):
            tracking.tell(results, failed=True)
        raise
    remember_profile(profile, overrides, opened)
    if session.json:
        session.print_json(**session.so_far())
    else:
        session.console.result(_in_words(results))
    if tracking:
        tracking.tell(results)
    return EXIT_DONE


def _open_remote(url: str | None) -> Remote | None:
    if url is None:
        return None
    from pipeline.store.remote import Remote

    return Remote(url)


def _open_tracking(uri: str | None, session: Session, profile: LoadedProfile) -> Tracking | None:
    if uri is None:
        return None
    from pipeline.tracking import Tracking

    return Tracking(uri, profile, session.console)


@contextmanager
def _executing(on: str | None, profile: LoadedProfile) -> Iterator[Execute]:
    """What calls the stages' functions: this process, or a cluster for as long as the run goes on."""
    if on is None:
        from pipeline.running.runner import in_process

        yield in_process
        return
    from pipeline.cluster.cluster import Cluster

    with closing(Cluster(on, profile)) as cluster:
        yield cluster.execute


def _in_words(results: Sequence[StageResult]) -> str:
    """The scorecard if the run came so far, else the last stage's figures; then where things lie."""
    from pipeline.console.stage_figures import scorecard, shipped, stage_figures

    last = results[-1]
    paths = {result.name: result.path for result in results if result.path}
    if "measure" in paths:
        figures = scorecard(paths["measure"], paths.get("gate"))
    else:
        figures = stage_figures(last.name, last.path, last.metrics) if last.path else ""
    places = [line for result in results if result.path for line in shipped(result.name, result.path)]
    if not places:
        places = [f"{last.name}  {last.path}"]
    return "\n".join([figures, "", *places]).lstrip("\n")


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
    help="Bring every stage of a profile up to date, and show the scorecard.",
    params=_options(),
    callback=_run,
    examples=(
        "kdpipe run profiles/resnet_to_mobilenet.yaml",
        "kdpipe run profiles/resnet_to_mobilenet.yaml --set distill.epochs=5 --until evaluate",
        "kdpipe run profiles/resnet_to_mobilenet.yaml --json > run.json",
    ),
    exit_codes=EVERY_RUN,
)


def stage_command(name: str) -> Command:
    """The subcommand of one stage."""
    stage = next(stage for stage in STAGES if stage.name == name)
    needs = f"Brings up to date what it needs ({', '.join(stage.inputs)}) first." if stage.inputs else ""
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
        exit_codes=EVERY_RUN,
    )
