"""`kdpipe device check` and `kdpipe device measure`: check the user's devices, and measure targets there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.base import RUN_EXIT_CODES, Command, NestedGroup, Option
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
    from pipeline.devices.measuring import DeviceMeasurement


def names_argument() -> click.Argument:
    """Return NAME..., one or more names of the profile's devices."""
    return click.Argument(["names"], nargs=-1, required=True, metavar="NAME...")


def _check(names: tuple[str, ...], profile: str, overrides: tuple[str, ...]) -> int:
    from pipeline.devices.jobs import device_targets
    from pipeline.devices.measuring import open_link, why_unable
    from pipeline.devices.text import device_in_words, error_entry

    session = click.get_current_context().ensure_object(Session)
    loaded, _ = open_profile(session, profile, overrides, None)
    call_fields = {
        name: value for name, value in session.so_far().items() if name in ("profile", "overrides")
    }
    entries: list[dict[str, Any]] = []
    failed: list[KdpipeError] = []
    session.so_far = lambda: {**call_fields, "devices": entries}
    links = [open_link(name, loaded) for name in dict.fromkeys(names)]
    with ExitStack() as open_links:
        for link in links:
            open_links.enter_context(link)
            try:
                facts = link.facts()
            except KdpipeError as error:  # the other devices are checked nevertheless
                failed.append(error)
                entries.append({"name": link.name, "url": link.settings["url"], "error": error_entry(error)})
                continue
            reasons = why_unable(facts, device_targets(link.name, loaded))
            targets = [{"target": name, "can": why is None, "why_not": why} for name, why in reasons.items()]
            entries.append({"name": link.name, "url": link.settings["url"], **facts, "targets": targets})
    reached = [entry for entry in entries if "error" not in entry]
    if reached and not session.json:
        session.console.result("\n\n".join(device_in_words(entry) for entry in reached))
    unable = [entry["name"] for entry in reached if not any(target["can"] for target in entry["targets"])]
    if unable:
        failed.append(
            DeviceCannot(
                "No target of the profile can be measured on the device",
                where=", ".join(f"device {name}" for name in unable),
                hint="install numpy and a runtime there, or set another Python with devices.NAME.python",
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
    from pipeline.devices.jobs import MeasurementInputs
    from pipeline.devices.measuring import connect_devices, measure, open_link, prepare_sources
    from pipeline.devices.text import measured_entry, measured_in_words

    session = click.get_current_context().ensure_object(Session)
    loaded, opened = open_profile(session, profile, overrides, store)
    call_fields = {name: value for name, value in session.so_far().items() if name != "stages"}
    measurements: list[DeviceMeasurement] = []
    session.so_far = lambda: {
        **call_fields,
        "devices": [measured_entry(measurement) for measurement in measurements],
    }
    links = [open_link(name, loaded) for name in dict.fromkeys(names)]
    session.resumable = True
    with guarded_output(), ExitStack() as stack:
        for link in links:
            stack.enter_context(link)
        # Fail before hours of training if no device answers.
        links, unreached = connect_devices(links, session.console.warn)
        measurements += unreached
        if not links:
            _raise_first(
                session, [measurement.error for measurement in measurements if measurement.error is not None]
            )
        outcome = bring_up_to_date(session, loaded, opened, only="package")
        outcome.raise_if_incomplete()  # the error of a complete run is about this machine; it is raised last
        opened.prepare()
        stack.callback(opened.release)
        results = {result.name: result for result in outcome.results}
        sources = stack.enter_context(opened.scratch())
        prepare_sources([link.name for link in links], results, sources, loaded)
        inputs = MeasurementInputs(loaded, opened, results, sources, TestImages(loaded, sources))
        measurements += measure(links, inputs, force=force, report=session.console.line)
        measurements.sort(key=lambda measurement: names.index(measurement.name))
        opened.digests.save()
    measured = [measurement for measurement in measurements if measurement.error is None]
    if measured and not session.json:
        session.console.result("\n\n".join(measured_in_words(measurement) for measurement in measured))
    errors = [*(measurement.error for measurement in measurements), outcome.error]
    _raise_first(session, [error for error in errors if error is not None])
    if session.json:
        session.print_json(**session.so_far())
    return EXIT_DONE


def _raise_first(session: Session, errors: Sequence[KdpipeError]) -> None:
    """Print all errors but the first, and raise the first; return if there is none."""
    for other in errors[1:]:
        session.console.error(other)
    if errors:
        raise errors[0]


check = Command(
    "check",
    help="Print a device's hardware and software: Python, numpy, runtimes, cores, disk, board.\n\n"
    "No files stay on the device.",
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
    help="Measure latency, memory and top-1 of the profile's targets on devices, several at once.\n\n"
    "Brings the bundle up to date first. Files that fit only one device are built there. An interrupted call "
    "continues: file transfers where they ended, measurements with the next target.",
    params=[
        names_argument(),
        profile_argument(),
        set_option(),
        Option(
            ["--force"],
            is_flag=True,
            heading="Stages",
            help="Measure again, even if the measurements are in the store.",
        ),
        json_option(),
        store_option(),
    ],
    callback=_measure,
    examples=(
        "kdpipe device measure pi profiles/mine.yaml",
        "kdpipe device measure pi orin profiles/mine.yaml",
        "kdpipe device measure pi profiles/mine.yaml --set measure.threads=[1,4] --json",
    ),
    exit_codes=RUN_EXIT_CODES,
)

device = NestedGroup(
    "device",
    help="Check your own devices, and measure the profile's targets on them.",
    examples=("kdpipe device check pi profiles/mine.yaml", "kdpipe device measure pi profiles/mine.yaml"),
)
device.add_lazy(
    "check", "pipeline.commands.device:check", "Print a device's hardware and software.", "Commands"
)
device.add_lazy(
    "measure", "pipeline.commands.device:measure", "Measure the profile's targets on devices.", "Commands"
)
