"""`kdpipe compare`: train the student by several methods and from several seeds, and compare the gains."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.base import RUN_EXIT_CODES, Command, Option
from pipeline.commands.options import json_option, profile_argument, set_option, store_option
from pipeline.commands.profiles import memo_folder, open_profile
from pipeline.commands.up_to_date import bring_up_to_date
from pipeline.console.console import guarded_output
from pipeline.console.session import Session
from pipeline.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from pipeline.comparing.comparison import FinishedRun, PlannedRun, UnfitMethod
    from pipeline.console.progress import ConsoleListener
    from pipeline.profile.loading import LoadedProfile
    from pipeline.store.store import Store

DEFAULT_SEEDS = 3


def _compare(
    profile: str,
    methods: tuple[str, ...],
    seeds: int | None,
    seed_list: str | None,
    split: str,
    baseline: bool,
    jobs: int,
    html: str | None,
    overrides: tuple[str, ...],
    store: str | None,
) -> int:
    from pipeline.comparing.comparison import plan_runs
    from pipeline.comparing.method_specs import DEFAULT, read_specs
    from pipeline.console.progress import ConsoleListener

    session = click.get_current_context().ensure_object(Session)
    loaded, opened = open_profile(session, profile, overrides, store)
    call_fields = {name: value for name, value in session.so_far().items() if name != "stages"}
    session.so_far = lambda: {**call_fields, "split": split, "runs": []}
    page = _page_to_write(html)
    chosen_seeds = _seeds(seeds, seed_list, loaded)
    specs = read_specs(methods or DEFAULT)
    if not baseline and len(specs) < 2 and "all" not in methods:
        raise UsageError(
            "There is nothing to compare",
            where="kdpipe compare --no-baseline",
            why="without the student alone the first method is the reference; it is the only one",
            hint="leave out --no-baseline, or name two methods with --methods",
        )
    with guarded_output():
        runs, unfit = plan_runs(
            loaded, specs, chosen_seeds, opened, baseline=baseline, memo=memo_folder(opened.root)
        )
        _announce(session, runs, unfit)
        session.resumable = True
        titles = tuple(run.title for run in runs)
        with ConsoleListener(session.console, ("train", "compare", *titles)) as listener:
            finished, fields = _execute(
                session, loaded, opened, runs, unfit, split, jobs, listener, call_fields
            )
    _show(session, {**call_fields, **fields}, page)
    _raise_if_failed(session, finished, {**call_fields, **fields})
    return EXIT_DONE


def _execute(
    session: Session,
    loaded: LoadedProfile,
    store: Store,
    runs: Sequence[PlannedRun],
    unfit: Sequence[UnfitMethod],
    split: str,
    jobs: int,
    listener: ConsoleListener,
    call_fields: dict[str, Any],
) -> tuple[list[FinishedRun], dict[str, Any]]:
    """Bring the teacher, all runs and the comparison up to date; the JSON document has the runs so far."""
    from pipeline.comparing.execution import execute_comparison
    from pipeline.comparing.text import runs_so_far

    so_far: list[FinishedRun] = []
    session.so_far = lambda: {**call_fields, "split": split, "runs": runs_so_far(so_far)}
    return execute_comparison(
        loaded,
        store,
        runs,
        unfit,
        split=split,
        jobs=jobs,
        listener=listener,
        console=session.console,
        train_teacher=lambda: bring_up_to_date(session, loaded, store, only="train", listener=listener),
        so_far=so_far,
    )


def _announce(session: Session, runs: Sequence[PlannedRun], unfit: Sequence[UnfitMethod]) -> None:
    cached = sum(run.decision.status == "hit" for run in runs)
    labels = len({run.label for run in runs})
    seeds = len({run.seed for run in runs})
    session.console.line(
        f"{labels} x {seeds} seed{'s' * (seeds != 1)}: {len(runs)} runs, {cached} of them cached"
    )
    for method in unfit:
        session.console.line(f"left out: {method.label}: {method.why}")


def _show(session: Session, fields: dict[str, Any], page: Path | None) -> None:
    from pipeline.comparing.text import comparison_text

    folder = Path(fields["path"])
    if page is not None:
        try:
            shutil.copyfile(folder / "comparison.html", page)
        except OSError as error:
            raise _unwritable(page, error.strerror or str(error)) from error
    if not session.json:
        session.console.result(comparison_text(fields, page or folder / "comparison.html"))
    elif not any(run["failed"] for run in fields["runs"]):
        session.print_json(**fields)


def _raise_if_failed(session: Session, finished: Sequence[FinishedRun], fields: dict[str, Any]) -> None:
    """Raise the error of failed runs: last, so that all other results are printed."""
    from pipeline.comparing.execution import error_for_failed_runs

    error = error_for_failed_runs(finished)
    if error is not None:
        session.so_far = lambda: fields
        raise error


def _seeds(count: int | None, seed_list: str | None, profile: LoadedProfile) -> list[int]:
    """Return the seeds of --seed-list, or --seeds seeds counted from the profile's own."""
    if seed_list is None:
        from pipeline.comparing.execution import seeds_of_count

        return seeds_of_count(profile, count or DEFAULT_SEEDS)
    if count is not None:
        raise UsageError(
            "--seeds and --seed-list exclude each other", where="kdpipe compare", hint="leave one of them out"
        )
    words = [word.strip() for word in seed_list.split(",")]
    if not all(word.isascii() and word.isdigit() and int(word) < 2**31 for word in words):
        raise UsageError(
            "--seed-list takes whole numbers of at least 0",
            where=f"--seed-list {seed_list}",
            hint="write them with commas: --seed-list 0,1,2",
        )
    return list(dict.fromkeys(int(word) for word in words))


def _page_to_write(html: str | None) -> Path | None:
    """Return the path of --html; check before hours of training that it can be written."""
    if html is None:
        return None
    page = Path(html).expanduser().absolute()
    if page.is_dir() or not os.access(page.parent, os.W_OK):
        raise _unwritable(
            page,
            "it is a folder" if page.is_dir() else "its folder does not exist, or you cannot write into it",
        )
    return page


def _unwritable(page: Path, why: str) -> UsageError:
    return UsageError("The page cannot be written", where=f"--html {page}", why=why, hint="give another file")


compare = Command(
    "compare",
    help="Train the student by several methods and from several seeds, and print the gain of each method.\n\n"
    "The teacher is trained once. Each run is a cached artefact of the stage distill, also that of the "
    "student alone. At the end, all students are evaluated together on the test images.",
    params=[
        profile_argument(),
        Option(
            ["--methods"],
            multiple=True,
            metavar="SPEC[,SPEC]...",
            heading="Comparison",
            help="Compare these methods: kd, msdcrd+kd, kd:temperature=2:weight=0.5+msdcrd, profile (those "
            "of the profile), all (each built-in method that fits), @FILE.yaml (label: list of methods). "
            "Repeatable. Default: profile,kd,msdcrd.",
        ),
        Option(
            ["--seeds"],
            type=click.IntRange(1, 1000),
            metavar="N",
            heading="Comparison",
            help=f"Train from this many seeds, counted from the profile's seed. Default: {DEFAULT_SEEDS}.",
        ),
        Option(["--seed-list"], metavar="S,S...", heading="Comparison", help="Train from these seeds."),
        Option(
            ["--baseline/--no-baseline"],
            default=True,
            heading="Comparison",
            help="Train the student alone, as the reference. With --no-baseline, it is the first method.",
        ),
        Option(
            ["--split"],
            type=click.Choice(["test", "validation"]),
            default="test",
            heading="Comparison",
            help="Evaluate on these images: validation to choose a method, test for the final figures. "
            "Default: test.",
        ),
        Option(
            ["--jobs"],
            type=click.IntRange(1, 256),
            default=1,
            metavar="N",
            heading="Processes",
            help="Train this many runs at once, each in a process with its share of the cores. Default: 1.",
        ),
        set_option(),
        Option(
            ["--html"],
            type=click.Path(),
            metavar="FILE",
            heading="Output",
            help="Copy the page with the table and charts to this file; the original stays in the store.",
        ),
        json_option(),
        store_option(),
    ],
    callback=_compare,
    examples=(
        "kdpipe compare profiles/resnet_to_mobilenet.yaml",
        "kdpipe compare profiles/resnet_to_mobilenet.yaml --methods kd,msdcrd:beta=0,msdcrd+kd --seeds 5",
        "kdpipe compare profiles/resnet_to_mobilenet.yaml --methods all --split validation --json",
    ),
    exit_codes=RUN_EXIT_CODES,
)
