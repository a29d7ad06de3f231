"""`kdpipe clean`: remove artefacts from the store that are no longer needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.base import Command, Option
from pipeline.commands.options import ProfilePath, StageName, json_option, set_option, store_option
from pipeline.commands.profiles import memo_folder
from pipeline.console.session import Session, store_folder
from pipeline.console.tables import size, table
from pipeline.errors import EXIT_DONE, EXIT_STAGE_FAILED, EXIT_USAGE, UsageError

if TYPE_CHECKING:
    from pipeline.store.cleaning import StoreItem
    from pipeline.store.store import Store


def _clean(
    profiles: tuple[str, ...],
    overrides: tuple[str, ...],
    stage: str | None,
    everything: bool,
    dry_run: bool,
    yes: bool,
    store: str | None,
) -> None:
    from pipeline.store.cleaning import clean as clean_store
    from pipeline.store.store import Store

    session = click.get_current_context().ensure_object(Session)
    session.store = store_folder(store)
    session.so_far = lambda: {"store": str(session.store)}
    if everything and (profiles or stage):
        raise UsageError(
            "--all excludes profiles and --stage",
            where="kdpipe clean",
            why="--all removes every artefact; profiles keep some, and --stage selects some",
            hint="leave out --all, or the profiles and --stage",
        )
    opened = Store(session.store)
    opened.check()
    keep = _needed_artefacts(opened, profiles, overrides) if profiles else None
    is_dry_run = dry_run or not yes
    items = clean_store(opened, keep=keep, stage=stage, everything=everything, dry_run=is_dry_run)
    total = sum(item.size_bytes for item in items)
    if session.json:
        session.print_json(
            **session.so_far(),
            removed=not is_dry_run,
            size_bytes=total,
            items=[_entry(item) for item in items],
        )
        return
    verb = "would remove" if is_dry_run else "removed"
    if items:
        rows = [
            [item.kind, item.stage, item.key[:12] or item.path.name, size(item.size_bytes)] for item in items
        ]
        session.console.result(table(("kind", "stage", "key", "size"), rows, "lllr") + "\n")
        session.console.result(f"{verb} {size(total)} from {session.store}")
        if is_dry_run and not dry_run:
            session.console.line("nothing is removed without --yes")
    else:
        session.console.result(f"nothing to remove from {session.store}")


def _needed_artefacts(
    store: Store, profiles: tuple[str, ...], overrides: tuple[str, ...]
) -> set[tuple[str, str]]:
    """Return the stage and key of every artefact that the plans of these profiles need."""
    from pipeline.profile.loading import load
    from pipeline.running.plan import artefacts_to_keep, make_plan

    needed: set[tuple[str, str]] = set()
    for path in profiles:
        profile = load(path, overrides, memo_folder(store.root), remember=False)
        needed |= artefacts_to_keep(make_plan(profile, store), profile, store)
    return needed


def _entry(item: StoreItem) -> dict[str, Any]:
    return {
        "kind": item.kind,
        "name": item.name,
        "stage": item.stage,
        "key": item.key,
        "path": str(item.path),
        "size_bytes": item.size_bytes,
    }


clean = Command(
    "clean",
    help="List, and with --yes remove, everything in the store that the given profiles do not need.\n\n"
    "Without a profile, this is only damaged artefacts, logs, and scratch folders of dead processes.",
    params=[
        click.Argument(["profiles"], nargs=-1, type=ProfilePath(), metavar="[PROFILE]..."),
        Option(
            ["--stage"],
            type=StageName(),
            metavar="STAGE",
            heading="Selection",
            help="Remove only items of this stage; without a profile, all of them.",
        ),
        Option(
            ["--all", "everything"],
            is_flag=True,
            heading="Selection",
            help="Remove every artefact and every checkpoint.",
        ),
        Option(
            ["--dry-run"], is_flag=True, heading="Selection", help="Only list the items, even with --yes."
        ),
        Option(
            ["--yes"],
            is_flag=True,
            heading="Selection",
            help="Remove the items; without this option they are only listed.",
        ),
        set_option(),
        json_option(),
        store_option(),
    ],
    callback=_clean,
    examples=(
        "kdpipe clean profiles/resnet_to_mobilenet.yaml",
        "kdpipe clean profiles/resnet_to_mobilenet.yaml --yes",
        "kdpipe clean --stage measure --yes",
    ),
    exit_codes=(EXIT_DONE, EXIT_STAGE_FAILED, EXIT_USAGE),
)
