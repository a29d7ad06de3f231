"""`kdpipe compare`: methods and seeds on one profile, and whether distillation paid."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.base import EVERY_RUN, Command, Option
from pipeline.commands.options import json_option, profile_argument, set_option, store_option
from pipeline.commands.profiles import memo_folder, open_profile
from pipeline.commands.up_to_date import bring_up_to_date
from pipeline.console.console import guarded_output
from pipeline.console.session import Session
from pipeline.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from pipeline.comparing.comparison import Done, Run, Unfit
    from pipeline.console.progress import ConsoleListener
    from pipeline.profile.loading import LoadedProfile
    from pipeline.store.store import Store

SEEDS = 3


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
    about = {name: value for name, value in session.so_far().items() if name != "stages"}
    session.so_far = lambda: {**about, "split": split, "runs": []}
    page = _page_to_write(html)
    chosen = _seeds(seeds, seed_list, loaded)
    entries = read_specs(methods or DEFAULT)
    if not baseline and len(entries) < 2 and "all" not in methods:
        raise UsageError(
            "There is nothing to compare",
            where="kdpipe compare --no-baseline",
            why="without the student alone the others are held against the first method; it is the only one",
            hint="leave out --no-baseline, or name two with --methods",
        )
    with guarded_output():
        runs, unfit = plan_runs(
            loaded, entries, chosen, opened, alone=baseline, memo=memo_folder(opened.root)
        )
        _announce(session, runs, unfit)
        session.resumable = True
        titles = tuple(run.title for run in runs)
        with ConsoleListener(session.console, ("train", "compare", *titles)) as listener:
            done, fields = _carry_out(session, loaded, opened, runs, unfit, split, jobs, listener, about)
    _show(session, {**about, **fields}, page)
    _raise_if_failed(session, done, {**about, **fields})
    return EXIT_DONE


def _carry_out(
    session: Session,
    loaded: LoadedProfile,
    store: Store,
    runs: Sequence[Run],
    unfit: Sequence[Unfit],
    split: str,
    jobs: int,
    listener: ConsoleListener,
    about: dict[str, Any],
) -> tuple[list[Done], dict[str, Any]]:
    """The teacher, all runs, and the comparison; the JSON document tells how far that has come."""
    from pipeline.comparing.execution import execute
    from pipeline.comparing.text import runs_so_far

    so_far: list[Done] = []
    session.so_far = lambda: {**about, "split": split, "runs": runs_so_far(so_far)}
    return execute(
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


def _announce(session: Session, runs: Sequence[Run], unfit: Sequence[Unfit]) -> None:
    cached = sum(run.decision.status == "hit" for run in runs)
    labels = len({run.label for run in runs})
    seeds = len({run.seed for run in runs})
    session.console.line(
        f"{labels} x {seeds} seed{'s' * (seeds != 1)}: {len(runs)} runs, {cached} of them cached"
    )
    for one in unfit:
        session.console.line(f"left out: {one.label}: {one.why}")


def _show(session: Session, fields: dict[str, Any], page: Path | None) -> None:
    from pipeline.comparing.text import in_words

    folder = Path(fields["path"])
    if page is not None:
        try:
            shutil.copyfile(folder / "comparison.html", page)
        except OSError as error:
            raise _unwritable(page, error.strerror or str(error)) from error
    if not session.json:
        session.console.result(in_words(fields, page or folder / "comparison.html"))
    elif not any(run["failed"] for run in fields["runs"]):
        session.print_json(**fields)


def _raise_if_failed(session: Session, done: Sequence[Done], fields: dict[str, Any]) -> None:
    """Failed runs end the command with code 1, but only after all else is done and shown."""
    from pipeline.comparing.execution import error_for_failed_runs

    error = error_for_failed_runs(done)
    if error is not None:
        session.so_far = lambda: fields
        raise error


def _seeds(count: int | None, listed: str | None, profile: LoadedProfile) -> list[int]:
    """The seeds asked for; without a list, so many from the profile's own on."""
    if listed is None:
        from pipeline.comparing.execution import seeds_of_count

        return seeds_of_count(profile, count or SEEDS)
    if count is not None:
        raise UsageError(
            "--seeds and --seed-list exclude each other", where="kdpipe compare", hint="leave one of them out"
        )
    words = [word.strip() for word in listed.split(",")]
    if not all(word.isascii() and word.isdigit() and int(word) < 2**31 for word in words):
        raise UsageError(
            "--seed-list takes whole numbers from 0 on",
            where=f"--seed-list {listed}",
            hint="write them with commas: --seed-list 0,1,2",
        )
    return list(dict.fromkeys(int(word) for word in words))


def _page_to_write(html: str | None) -> Path | None:
    """Where the page goes, looked at before hours of training."""
    if html is None:
        return None
    page = Path(html).expanduser().absolute()
    if page.is_dir() or not os.access(page.parent, os.W_OK):
        raise _unwritable(
            page, "it is a folder" if page.is_dir() else "its folder is not there, or is not yours"
        )
    return page


def _unwritable(page: Path, why: str) -> UsageError:
    return UsageError("The page cannot be written", where=f"--html {page}", why=why, hint="name another file")


compare = Command(
    "compare",
    help="Train the student by several methods and from several seeds, and say what each gained.\n\n"
    "The teacher is trained once. Each run is a cached artefact of the stage distill, the student alone "
    "among them. All are judged at the end, on the test images at once.",
    params=[
        profile_argument(),
        Option(
            ["--methods"],
            multiple=True,
            metavar="SPEC[,SPEC]...",
            heading="What is compared",
            help="kd, msdcrd+kd, kd:temperature=2:weight=0.5+msdcrd, profile (what the profile says), all "
            "(each built-in one that fits), @FILE.yaml (label: list of methods). Repeatable. "
            "Default: profile,kd,msdcrd.",
        ),
        Option(
            ["--seeds"],
            type=click.IntRange(1, 1000),
            metavar="N",
            heading="What is compared",
            help=f"So many seeds of the student, from the profile's on. Default: {SEEDS}.",
        ),
        Option(
            ["--seed-list"], metavar="S,S...", heading="What is compared", help="These seeds of the student."
        ),
        Option(
            ["--baseline/--no-baseline"],
            default=True,
            heading="What is compared",
            help="Train the student alone, too; without it the others are held against the first method.",
        ),
        Option(
            ["--split"],
            type=click.Choice(["test", "validation"]),
            default="test",
            heading="What is compared",
            help="Images to judge on: validation to make choices, test once they are made. Default: test.",
        ),
        Option(
            ["--jobs"],
            type=click.IntRange(1, 256),
            default=1,
            metavar="N",
            heading="Running",
            help="Runs at once, each in a process with its share of the cores. Default: 1.",
        ),
        set_option(),
        Option(
            ["--html"],
            type=click.Path(),
            metavar="FILE",
            heading="Output",
            help="Copy the page with table and charts here; it lies in the store as well.",
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
    exit_codes=EVERY_RUN,
)
