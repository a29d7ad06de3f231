"""`kdpipe device`: measure the targets of a profile on devices.

A measurement is an artefact (`artefacts/device/KEY`). Its key covers the content of the bundle and the facts
of the device that its figures depend on. The device's name is not in the key, so equal boards share it.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.devices.files import Report
from pipeline.devices.jobs import (
    MeasurementInputs,
    device_targets,
    is_built_there,
    measure_targets,
    measurement_folder,
)
from pipeline.devices.link import Link
from pipeline.errors import DeviceCannot, KdpipeError, StageError, UsageError
from pipeline.profile.loading import LoadedProfile
from pipeline.running.key_facts import KeyFacts, resolve
from pipeline.running.plan import profile_entry
from pipeline.running.run_state import StageResult
from pipeline.stage import Context, Silent
from pipeline.store.keys import sha256_of
from stages import (
    DEVICE,
    DEVICE_ABILITIES,
    DEVICE_KEY_FACTS,
    DEVICE_LASTING_FACTS,
    DEVICE_PROGRAM,
    DEVICE_SOURCES,
)


@dataclass(frozen=True)
class DeviceMeasurement:
    """The result of measuring on one device.

    Attributes:
        name: The device's name in the profile.
        url: Its URL.
        status: `ran`, `hit` (the measurement was in the store) or `failed`.
        key: The key of the artefact; None if it failed.
        path: The folder of the artefact; None if it failed.
        seconds: How long the measurement took.
        facts: The device's hardware and software.
        error: Why it failed.
    """

    name: str
    url: str
    status: str
    key: str | None = None
    path: Path | None = None
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: KdpipeError | None = None


def open_link(name: str, profile: LoadedProfile) -> Link:
    """Return the link to a device of the profile; it does not connect yet.

    Args:
        name: The device's name.
        profile: The profile.

    Raises:
        UsageError: The profile has no device of this name.
    """
    devices = profile.sections["devices"]
    if name not in devices:
        raise UsageError(
            f"The profile has no device {name!r}",
            where=f"{profile.path}, devices",
            why=f"its devices are {', '.join(devices)}" if devices else "it has no devices",
            hint=f"add it to the profile: devices: {{{name}: {{url: ssh://USER@HOST}}}}",
        )
    return Link(name, devices[name], resolve(DEVICE_PROGRAM)())


def connect_devices(links: Sequence[Link], report: Report) -> tuple[list[Link], list[DeviceMeasurement]]:
    """Connect to every device.

    Args:
        links: The links to the devices.
        report: Prints which devices failed, if there are several.

    Returns:
        The links that are connected, and a failed measurement for each other device.
    """
    connected: list[Link] = []
    failed: list[DeviceMeasurement] = []
    for link in links:
        try:
            link.connect()
            connected.append(link)
        except KdpipeError as error:
            failed.append(DeviceMeasurement(link.name, str(link.settings["url"]), "failed", error=error))
            if len(links) > 1:
                report(f"{link.name}: {error.what}; the other devices are measured first")
    return connected, failed


def why_unable(facts: Mapping[str, Any], targets: Sequence[str]) -> dict[str, str | None]:
    """Return, by target, why it cannot be measured on the device with these facts; None if it can."""
    reasons: dict[str, str | None] = resolve(DEVICE_ABILITIES)(facts, targets)
    return reasons


def measure(
    links: Sequence[Link], inputs: MeasurementInputs, *, force: bool, report: Report
) -> list[DeviceMeasurement]:
    """Measure on all devices at once, and on devices with the same URL one after the other.

    Measurements at the same time on one machine would slow each other down. An error of one device does not
    stop the others.

    Args:
        links: The links to the devices.
        inputs: What to measure.
        force: Whether to measure even if the measurement is in the store.
        report: Prints the progress.

    Returns:
        The measurements, in the order of `links`.
    """
    measurements: list[DeviceMeasurement | None] = [None] * len(links)
    boards: dict[str, list[int]] = {}
    for number, link in enumerate(links):
        boards.setdefault(str(link.settings["url"]), []).append(number)
    stopped = threading.Event()

    def measure_board(numbers: list[int]) -> None:
        for number in numbers:
            if not stopped.is_set():
                measurements[number] = _measure_or_fail(links[number], inputs, force=force, report=report)

    threads = [
        threading.Thread(target=measure_board, args=(numbers,), daemon=True) for numbers in boards.values()
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(timeout=0.2)  # in slices, so that an interrupt takes effect
    except BaseException:
        stopped.set()
        for link in links:
            link.stop()
        raise
    return [measurement for measurement in measurements if measurement is not None]


def _measure_or_fail(
    link: Link, inputs: MeasurementInputs, *, force: bool, report: Report
) -> DeviceMeasurement:
    url, start = str(link.settings["url"]), time.monotonic()
    try:
        return _measure(link, inputs, force=force, report=report)
    except KdpipeError as error:
        return DeviceMeasurement(link.name, url, "failed", seconds=time.monotonic() - start, error=error)
    except Exception as error:  # a defect of kdpipe: reported without stopping the other devices
        fault = StageError(f"{link.name}: {type(error).__name__}: {error}", where=link.where)
        fault.__cause__ = error
        return DeviceMeasurement(link.name, url, "failed", seconds=time.monotonic() - start, error=fault)


def _measure(link: Link, inputs: MeasurementInputs, *, force: bool, report: Report) -> DeviceMeasurement:
    start = time.monotonic()
    facts = link.facts()
    if facts["numpy"].get("error"):
        raise DeviceCannot(
            "The device's Python has no numpy",
            where=link.where,
            why=facts["numpy"]["error"],
            hint=f"install it there, or set another Python with devices.{link.name}.python",
        )
    store, targets = inputs.store, device_targets(link.name, inputs.profile)
    parts = _key_parts(inputs, link.name, targets, facts)
    key = sha256_of(parts)
    path = store.artefact_path(DEVICE.name, key)
    cached = DeviceMeasurement(link.name, str(link.settings["url"]), "hit", key, path, facts=facts)
    with store.lock(DEVICE.name, key, lambda holder: report(f"{link.name}: waiting for {holder}")):
        if not force and store.find(DEVICE.name, key) is not None:
            return cached
        work = store.open_work(DEVICE.name, key, start_over=force)
        device_settings = measure_targets(link, inputs, targets, work, key, restart=force, report=report)
        device_settings["facts"] = lasting(facts)
        _publish(inputs, parts, device_settings, work, replacing=force, seconds=time.monotonic() - start)
        store.close_work(DEVICE.name, key, done=True)
    link.call("remove", place=measurement_folder(inputs, key))
    return replace(cached, status="ran", seconds=time.monotonic() - start)


def lasting(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts without paths and without values that change from minute to minute."""
    lasting_facts: dict[str, Any] = resolve(DEVICE_LASTING_FACTS)(facts)
    return lasting_facts


def _key_parts(
    inputs: MeasurementInputs, name: str, targets: Sequence[str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    sources = ["export", "quantize"] if any(map(is_built_there, targets)) else []
    stages = ("evaluate", "measure", "package", *sources)
    return {
        "stage": DEVICE.name,
        "version": DEVICE.version,
        "profile": {section: inputs.profile.keyed[section] for section in DEVICE.reads},
        "targets": list(targets),
        "inputs": {stage: inputs.results[stage].digest for stage in stages},
        "data": KeyFacts(inputs.profile, inputs.store).of(DEVICE)["data"],
        "accuracy_images": inputs.profile.sections["devices"][name]["accuracy_images"],
        "device": resolve(DEVICE_KEY_FACTS)(facts),
    }


def _publish(
    inputs: MeasurementInputs,
    parts: Mapping[str, Any],
    device_settings: dict[str, Any],
    work: Path,
    *,
    replacing: bool,
    seconds: float,
) -> None:
    settings = inputs.profile.settings(DEVICE.reads)
    settings.device = device_settings
    folders = {name: inputs.folder(name) for name in DEVICE.inputs}
    with inputs.store.scratch() as output:
        context = Context(settings, {**folders, "results": work}, output, work=work, progress=Silent())
        metrics = importlib.import_module(DEVICE.module).run(context)
        inputs.store.publish(
            output,
            stage=DEVICE.name,
            version=DEVICE.version,
            key_parts=parts,
            inputs={
                name: {"key": str(inputs.results[name].key), "digest": str(inputs.results[name].digest)}
                for name in parts["inputs"]
            },
            metrics=metrics,
            seconds=seconds,
            profile=profile_entry(inputs.profile),
            replacing=replacing,
        )


def prepare_sources(
    names: Sequence[str], results: Mapping[str, StageResult], output: Path, profile: LoadedProfile
) -> None:
    """Write the ONNX files that devices build targets from.

    Args:
        names: The names of the devices.
        results: The results of the profile's stages by stage name.
        output: The folder for the files.
        profile: The profile.
    """
    targets = {target for name in names for target in device_targets(name, profile) if is_built_there(target)}
    if targets:
        inputs = {stage: results[stage].path for stage in ("export", "quantize")}
        settings = profile.settings(("build",)).build
        resolve(DEVICE_SOURCES)(sorted(targets), inputs, output, settings)
