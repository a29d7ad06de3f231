"""`kdpipe device`: what a device is, and the targets of a profile measured on it.

A measurement is an artefact (`artefacts/device/KEY`), keyed by the content of the bundle and by what of the
device its figures depend on; not by its name, so that equal boards share it.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.devices.jobs import Line, Tell, is_built_there, place_of, take, targets_of
from pipeline.devices.link import Link
from pipeline.errors import DeviceCannot, KdpipeError, StageError, UsageError
from pipeline.profile.loading import LoadedProfile
from pipeline.running.plan import KeyFacts, profile_entry, resolve
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
class Measured:
    """What became of a device: where its artefact lies, or the error."""

    name: str
    url: str
    status: str
    key: str | None = None
    path: Path | None = None
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: KdpipeError | None = None


def open_link(name: str, profile: LoadedProfile) -> Link:
    """The link to a device of the profile; nothing is connected yet. Raises UsageError for another name."""
    devices = profile.sections["devices"]
    if name not in devices:
        raise UsageError(
            f"The profile has no device {name!r}",
            where=f"{profile.path}, devices",
            why=f"there are: {', '.join(devices)}" if devices else "it has none",
            hint=f"add it to the profile: devices: {{{name}: {{url: ssh://USER@HOST}}}}",
        )
    return Link(name, devices[name], resolve(DEVICE_PROGRAM)())


def reach(links: Sequence[Link], tell: Tell) -> tuple[list[Link], list[Measured]]:
    """The devices that answer, and what became of the others."""
    reached: list[Link] = []
    failed: list[Measured] = []
    for link in links:
        try:
            link.reach()
            reached.append(link)
        except KdpipeError as error:
            failed.append(Measured(link.name, str(link.settings["url"]), "failed", error=error))
            if len(links) > 1:
                tell(f"{link.name}: {error.what}; the other devices come first")
    return reached, failed


def why_unable(facts: Mapping[str, Any], targets: Sequence[str]) -> dict[str, str | None]:
    """Return, by target, why it cannot be measured on the device with these facts; None if it can."""
    reasons: dict[str, str | None] = resolve(DEVICE_ABILITIES)(facts, targets)
    return reasons


def measure(links: Sequence[Link], line: Line, *, force: bool, tell: Tell) -> list[Measured]:
    """Every device at once, those of one address in turns: timed together they would slow each other down.

    One that fails does not stop the others.
    """
    found: list[Measured | None] = [None] * len(links)
    boards: dict[str, list[int]] = {}
    for place, link in enumerate(links):
        boards.setdefault(str(link.settings["url"]), []).append(place)
    stopped = threading.Event()

    def work(places: list[int]) -> None:
        for place in places:
            if not stopped.is_set():
                found[place] = _measure_or_fail(links[place], line, force=force, tell=tell)

    threads = [threading.Thread(target=work, args=(places,), daemon=True) for places in boards.values()]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(timeout=0.2)  # in slices, so that an interrupt is heard
    except BaseException:
        stopped.set()
        for link in links:
            link.stop()
        raise
    return [one for one in found if one is not None]


def _measure_or_fail(link: Link, line: Line, *, force: bool, tell: Tell) -> Measured:
    url, begun = str(link.settings["url"]), time.monotonic()
    try:
        return _measure(link, line, force=force, tell=tell)
    except KdpipeError as error:
        return Measured(link.name, url, "failed", seconds=time.monotonic() - begun, error=error)
    except Exception as error:  # a defect, told as such without taking the other devices down
        fault = StageError(f"{link.name}: {type(error).__name__}: {error}", where=link.where)
        fault.__cause__ = error
        return Measured(link.name, url, "failed", seconds=time.monotonic() - begun, error=fault)


def _measure(link: Link, line: Line, *, force: bool, tell: Tell) -> Measured:
    begun = time.monotonic()
    facts = link.facts()
    if facts["numpy"].get("error"):
        raise DeviceCannot(
            "The device's Python has no numpy",
            where=link.where,
            why=facts["numpy"]["error"],
            hint=f"install it there, or name another Python with devices.{link.name}.python",
        )
    store, targets = line.store, targets_of(link.name, line.profile)
    parts = _key_parts(line, link.name, targets, facts)
    key = sha256_of(parts)
    path = store.artefact_path(DEVICE.name, key)
    done = Measured(link.name, str(link.settings["url"]), "hit", key, path, facts=facts)
    with store.lock(DEVICE.name, key, lambda holder: tell(f"{link.name}: waiting for {holder}")):
        if not force and store.find(DEVICE.name, key) is not None:
            return done
        work = store.open_work(DEVICE.name, key, start_over=force)
        asked = take(link, line, targets, work, key, anew=force, tell=tell)
        asked["facts"] = lasting(facts)
        _publish(line, parts, asked, work, replacing=force, seconds=time.monotonic() - begun)
        store.close_work(DEVICE.name, key, done=True)
    link.ask("remove", place=place_of(line, key))
    return replace(done, status="ran", seconds=time.monotonic() - begun)


def lasting(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts without paths and without what changes from minute to minute."""
    chosen: dict[str, Any] = resolve(DEVICE_LASTING_FACTS)(facts)
    return chosen


def _key_parts(line: Line, name: str, targets: Sequence[str], facts: Mapping[str, Any]) -> dict[str, Any]:
    inputs = ["export", "quantize"] if any(map(is_built_there, targets)) else []
    return {
        "stage": DEVICE.name,
        "version": DEVICE.version,
        "profile": {section: line.profile.keyed[section] for section in DEVICE.reads},
        "targets": list(targets),
        "inputs": {stage: line.made[stage].digest for stage in ("evaluate", "measure", "package", *inputs)},
        "data": KeyFacts(line.profile, line.store).of(DEVICE)["data"],
        "accuracy_images": line.profile.sections["devices"][name]["accuracy_images"],
        "device": resolve(DEVICE_KEY_FACTS)(facts),
    }


def _publish(
    line: Line,
    parts: Mapping[str, Any],
    asked: dict[str, Any],
    work: Path,
    *,
    replacing: bool,
    seconds: float,
) -> None:
    settings = line.profile.settings(DEVICE.reads)
    settings.device = asked
    inputs = {name: line.folder(name) for name in DEVICE.inputs}
    with line.store.scratch() as output:
        context = Context(settings, {**inputs, "results": work}, output, work=work, progress=Silent())
        metrics = importlib.import_module(DEVICE.module).run(context)
        line.store.publish(
            output,
            stage=DEVICE.name,
            version=DEVICE.version,
            key_parts=parts,
            inputs={
                name: {"key": str(line.made[name].key), "digest": str(line.made[name].digest)}
                for name in parts["inputs"]
            },
            metrics=metrics,
            seconds=seconds,
            profile=profile_entry(line.profile),
            replacing=replacing,
        )


def prepare_sources(
    names: Sequence[str], made: Mapping[str, StageResult], output: Path, profile: LoadedProfile
) -> None:
    """Write the ONNX files that these devices build targets from into `output`."""
    wanted = {target for name in names for target in targets_of(name, profile) if is_built_there(target)}
    if wanted:
        inputs = {stage: made[stage].path for stage in ("export", "quantize")}
        settings = profile.settings(("build",)).build
        resolve(DEVICE_SOURCES)(sorted(wanted), inputs, output, settings)
