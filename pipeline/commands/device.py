"""`kdpipe device check` and `kdpipe device measure`: one's own devices."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.base import EVERY_RUN, Command, Family, Option
from pipeline.commands.options import json_option, profile_argument, set_option, store_option
from pipeline.commands.profiles import open_profile
from pipeline.commands.up_to_date import bring_up_to_date
from pipeline.console.console import guarded_output
from pipeline.console.session import Session
from pipeline.errors import (
    EXIT_DONE,
    EXIT_MACHINE_CANNOT,
    EXIT_STAGE_FAILED,
    EXIT_USAGE,
    DeviceCannot,
    KdpipeError,
)

if TYPE_CHECKING:
    from pipeline.devices.measuring import Measured


def names_argument() -> click.Argument:
    return click.Argument(["names"], nargs=-1, required=True, metavar="NAME...")


def _check(names: tuple[str, ...], profile: str, overrides: tuple[str, ...]) -> int:
    from pipeline.devices.jobs import targets_of
    from pipeline.devices.measuring import abilities, open_link
    from pipeline.devices.text import device_in_words, error_entry

    session = click.get_current_context().ensure_object(Session)
    loaded, _ = open_profile(session, profile, overrides, None)
    about = {name: value for name, value in session.so_far().items() if name in ("profile", "overrides")}
    told: list[dict[str, Any]] = []
    failed: list[KdpipeError] = []
    session.so_far = lambda: {**about, "devices": told}
    links = [open_link(name, loaded) for name in dict.fromkeys(names)]
    with ExitStack() as open_links:
        for link in links:
            open_links.enter_context(link)
            try:
                facts = link.facts()
            except KdpipeError as error:  # the others are looked at all the same
                failed.append(error)
                told.append({"name": link.name, "url": link.settings["url"], "error": error_entry(error)})
                continue
            can = abilities(facts, targets_of(link.name, loaded))
            targets = [{"target": name, "can": why is None, "why_not": why} for name, why in can.items()]
            told.append({"name": link.name, "url": link.settings["url"], **facts, "targets": targets})
    reached = [one for one in told if "error" not in one]
    if reached and not session.json:
        session.console.result("\n\n".join(device_in_words(one) for one in reached))
    unable = [one["name"] for one in reached if not any(target["can"] for target in one["targets"])]
    if unable:
        failed.append(
            DeviceCannot(
                "No target of the profile can be measured there",
                where=", ".join(f"device {name}" for name in unable),
                hint="install numpy and a runtime there, or name another Python with devices.NAME.python",
            )
        )
    _raise_first(session, failed)
    if session.json:
        session.print_json(**session.so_far())
    return EXIT_DONE


def _measure(
    names: tuple[str, ...], profile: str, force: bool, overrides: tuple[str, ...], store: str | None
) -> int:
    from pipeline.devices.images import TestImages
    from pipeline.devices.jobs import Line
    from pipeline.devices.measuring import measure, open_link, prepare_sources, reach
    from pipeline.devices.text import measured_entry, measured_in_words

    session = click.get_current_context().ensure_object(Session)
    loaded, opened = open_profile(session, profile, overrides, store)
    about = {name: value for name, value in session.so_far().items() if name != "stages"}
    done: list[Measured] = []
    session.so_far = lambda: {**about, "devices": [measured_entry(one) for one in done]}
    links = [open_link(name, loaded) for name in dict.fromkeys(names)]
    session.resumable = True
    with guarded_output(), ExitStack() as held:
        for link in links:
            held.enter_context(link)
        # A device that does not answer is told before hours of training.
        links, unreached = reach(links, session.console.warn)
        done += unreached
        if not links:
            _raise_first(session, [one.error for one in done if one.error is not None])
        outcome = bring_up_to_date(session, loaded, opened, only="package")
        outcome.raise_if_incomplete()  # an error of a complete run is about this machine: raised in the end
        opened.prepare()
        held.callback(opened.release)
        made = {result.name: result for result in outcome.results}
        sources = held.enter_context(opened.scratch())
        prepare_sources([link.name for link in links], made, sources, loaded)
        line = Line(loaded, opened, made, sources, TestImages(loaded, sources))
        done += measure(links, line, force=force, tell=session.console.line)
        done.sort(key=lambda one: names.index(one.name))
        opened.digests.save()
    measured = [one for one in done if one.error is None]
    if measured and not session.json:
        session.console.result("\n\n".join(measured_in_words(one) for one in measured))
    errors = [*(one.error for one in done), outcome.error]
    _raise_first(session, [error for error in errors if error is not None])
    if session.json:
        session.print_json(**session.so_far())
    return EXIT_DONE


def _raise_first(session: Session, errors: Sequence[KdpipeError]) -> None:
    """Raises the first of the errors, if there is one; the others are told before it."""
    for other in errors[1:]:
        session.console.error(other)
    if errors:
        raise errors[0]


check = Command(
    "check",
    help="Say what a device is and has: Python, numpy, runtimes, trtexec, cores, disk, board.\n\n"
    "Nothing is left on the device.",
    params=[names_argument(), profile_argument(), set_option(), json_option()],
    callback=_check,
    examples=(
        "kdpipe device check pi profiles/mine.yaml",
        "kdpipe device check pi orin profiles/mine.yaml",
        "kdpipe device check pi profiles/mine.yaml --json",
    ),
    exit_codes=(EXIT_DONE, EXIT_STAGE_FAILED, EXIT_USAGE, EXIT_MACHINE_CANNOT),
)

measure = Command(
    "measure",
    help="Measure latency, memory and top-1 of the profile's targets on devices, several at once; TensorRT's "
    "engines are built there.\n\n"
    "Brings the bundle up to date first. What broke off goes on: files where they ended, "
    "measurements by target.",
    params=[
        names_argument(),
        profile_argument(),
        set_option(),
        Option(["--force"], is_flag=True, heading="Stages", help="Measure again what is in the store."),
        json_option(),
        store_option(),
    ],
    callback=_measure,
    examples=(
        "kdpipe device measure pi profiles/mine.yaml",
        "kdpipe device measure pi orin profiles/mine.yaml",
        "kdpipe device measure pi profiles/mine.yaml --set measure.threads=[1,4] --json",
    ),
    exit_codes=EVERY_RUN,
)

device = Family(
    "device",
    help="Your own devices: what they have, and the profile's targets measured on them.",
    examples=("kdpipe device check pi profiles/mine.yaml", "kdpipe device measure pi profiles/mine.yaml"),
)
device.add_lazy("check", "pipeline.commands.device:check", "Say what a device is and has.", "Commands")
device.add_lazy(
    "measure", "pipeline.commands.device:measure", "Measure the profile's targets on devices.", "Commands"
)
