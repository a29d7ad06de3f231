"""`kdpipe ship`: install, list and roll back releases on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.base import RUN_EXIT_CODES, Command, Option
from pipeline.commands.options import json_option, profile_argument, set_option, store_option
from pipeline.commands.profiles import open_profile
from pipeline.commands.up_to_date import bring_up_to_date
from pipeline.console.console import guarded_output
from pipeline.console.session import Session
from pipeline.errors import EXIT_DONE, GateMissed, UsageError

if TYPE_CHECKING:
    from pipeline.devices.link import Link
    from pipeline.profile.loading import LoadedProfile
    from pipeline.store.store import Store


def _ship(
    name: str,
    profile: str,
    list_: bool,
    rollback: bool,
    keep: int | None,
    overrides: tuple[str, ...],
    store: str | None,
) -> int:
    from pipeline.devices.measuring import open_link
    from pipeline.devices.shipping import releases, roll_back
    from pipeline.devices.text import releases_in_words, shipped_in_words

    session = click.get_current_context().ensure_object(Session)
    if list_ and rollback:
        raise UsageError(
            "--list and --rollback exclude each other", where="kdpipe ship", hint="leave one of them out"
        )
    loaded, opened = open_profile(session, profile, overrides, store)
    call_fields = {key: value for key, value in session.so_far().items() if key != "stages"}
    session.so_far = lambda: {**call_fields, "device": name}
    with open_link(name, loaded) as link, guarded_output():
        if list_:
            fields = releases(link)
        elif rollback:
            fields = roll_back(link)
        else:
            fields = _install(session, link, loaded, opened, keep)
    if session.json:
        session.print_json(**session.so_far(), **fields)
    else:
        text = releases_in_words(fields) if list_ else shipped_in_words(name, fields)
        session.console.result(text)
    return EXIT_DONE


def _install(
    session: Session, link: Link, loaded: LoadedProfile, opened: Store, keep: int | None
) -> dict[str, Any]:
    """Bring the bundle up to date, verify it here, and install it as the device's current release."""
    from pipeline.devices.shipping import may_ship, ship, verified_bundle

    link.connect()  # fails before hours of training if the device does not answer
    outcome = bring_up_to_date(session, loaded, opened, only="package")
    outcome.raise_if_incomplete()
    if outcome.error is not None:
        if isinstance(outcome.error, GateMissed) and not may_ship(outcome.results):
            raise outcome.error
        session.console.warn(f"{outcome.error.what}: the bundle is shipped nevertheless")
    packed = outcome.results[-1]
    bundle = verified_bundle(opened, packed)
    keep_count = int(link.settings["keep"] if keep is None else keep)
    return ship(link, bundle, str(packed.digest), keep=keep_count, report=session.console.line)


ship = Command(
    "ship",
    help="Install the profile's bundle on a device, as the release in use.\n\n"
    "Each release has a folder, named by its digest; the link `current` points to the release in use. It "
    "changes in one step, and only after the self-test passed on the device. The latest releases stay there "
    "for --rollback. If the bundle's default target misses a gate, nothing is shipped.",
    params=[
        click.Argument(["name"], metavar="NAME"),
        profile_argument(),
        Option(
            ["--list", "list_"], is_flag=True, heading="Releases", help="List the device's releases instead."
        ),
        Option(
            ["--rollback"],
            is_flag=True,
            heading="Releases",
            help="Go back to the release before the current one instead.",
        ),
        Option(
            ["--keep"],
            type=click.IntRange(1, 1000),
            metavar="N",
            heading="Releases",
            help="Keep this many releases on the device. Default: devices.NAME.keep.",
        ),
        set_option(),
        json_option(),
        store_option(),
    ],
    callback=_ship,
    examples=(
        "kdpipe ship pi profiles/mine.yaml",
        "kdpipe ship pi profiles/mine.yaml --list",
        "kdpipe ship pi profiles/mine.yaml --rollback",
    ),
    exit_codes=RUN_EXIT_CODES,
)
