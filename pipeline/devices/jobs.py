"""The work on one device: deliver files, run the self-test, measure each target and fetch its results."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.devices.files import Report, deliver, fetch, local_file, local_files
from pipeline.devices.images import DeliveredImages, TestImages
from pipeline.devices.link import Link
from pipeline.errors import DeviceCannot, KdpipeError, StageError
from pipeline.heartbeat import Beat
from pipeline.profile.loading import LoadedProfile
from pipeline.running.key_facts import resolve
from pipeline.running.run_state import StageResult
from pipeline.store.store import Store
from stages import BUILT_ON_DEVICES, DEVICE_REQUEST

REPORT_EVERY_S = 30.0
"""Least time between two lines about the progress of a measurement, in seconds."""


@dataclass(frozen=True)
class MeasurementInputs:
    """What devices measure.

    Attributes:
        profile: The profile.
        store: Its store.
        results: The results of its stages by stage name.
        sources: The folder with the ONNX files that devices build engines from.
        images: The test images.
    """

    profile: LoadedProfile
    store: Store
    results: Mapping[str, StageResult]
    sources: Path
    images: TestImages

    def folder(self, stage: str) -> Path:
        """Return the folder of a stage's artefact."""
        path = self.results[stage].path
        assert path is not None
        return path


def device_targets(name: str, profile: LoadedProfile) -> list[str]:
    """Return the names of the targets that the profile assigns to a device."""
    all_targets = [str(target["name"]) for target in profile.sections["targets"]]
    assigned = profile.sections["devices"][name]["targets"]
    return [target for target in all_targets if assigned is None or target in assigned]


def is_built_there(target: str) -> bool:
    """Return whether the device builds the target's file: one that fits no other device."""
    return bool(resolve(BUILT_ON_DEVICES)(target))


def measure_targets(
    link: Link,
    inputs: MeasurementInputs,
    targets: Sequence[str],
    work: Path,
    key: str,
    *,
    restart: bool,
    report: Report,
) -> dict[str, Any]:
    """Measure targets on a device and fetch the results, target by target.

    Args:
        link: The link to the device.
        inputs: What to measure.
        targets: The names of the targets; one whose results are in `work` is not measured again.
        work: The folder for the results on this machine.
        key: The key of the measurement.
        restart: Whether to remove the results that are on the device.
        report: Prints the progress.

    Returns:
        `targets`, `skipped` (by target, why it was not measured) and `images` (how many were used).

    Raises:
        StageError: The self-test or a target failed; the other targets are measured first.
        DeviceCannot: No target can run on the device.
    """
    bundle, device_folder = inputs.folder("package") / "bundle", measurement_folder(inputs, key)
    if restart:
        link.call("remove", place=f"{device_folder}/results")
    sent_bytes = deliver(link, local_files(bundle), f"{device_folder}/bundle", report)
    report(f"{link.name}: the bundle is on the device ({sent_bytes} bytes sent)")
    self_test(link, f"{device_folder}/bundle", allow_no_target=any(map(is_built_there, targets)))
    sources = {f"{name}.onnx": inputs.sources / f"{name}.onnx" for name in targets if is_built_there(name)}
    if sources:
        onnx_files = {name: local_file(file) for name, file in sources.items()}
        deliver(link, onnx_files, f"{device_folder}/onnx", report)
    images = inputs.images.deliver(link, report)
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    skipped: dict[str, str] = {}
    errors: list[KdpipeError] = []
    for target in targets:
        if not is_built_there(target) and target not in manifest["targets"]:
            skipped[target] = (
                "it is not in the bundle: it was not built here, or package.targets leaves it out"
            )
            continue
        if (work / target / "result.json").is_file():
            report(f"{link.name}: {target} was measured already")
            continue
        start = time.monotonic()
        try:
            _measure_target(link, inputs, target, manifest, images, work, key, report)
        except StageError as error:
            errors.append(error)
            report(f"{link.name}: {target} failed: {error.what}")
            continue
        why_not = json.loads((work / target / "result.json").read_text(encoding="utf-8"))["why_not"]
        seconds = time.monotonic() - start
        report(f"{link.name}: {target} " + ("cannot be measured" if why_not else f"done in {seconds:.1f} s"))
    if errors:
        raise errors[0]
    return {"targets": list(targets), "skipped": skipped, "images": images.count if images else 0}


def _measure_target(
    link: Link,
    inputs: MeasurementInputs,
    target: str,
    manifest: Mapping[str, Any],
    images: DeliveredImages | None,
    work: Path,
    key: str,
    report: Report,
) -> None:
    request = resolve(DEVICE_REQUEST)(
        target,
        measurement_folder(inputs, key),
        images.device_path if images else None,
        manifest,
        inputs.profile.sections,
    )
    answer = link.call("measure", on_beat=_ProgressReporter(f"{link.name}: {target}", report), **request)
    # result.json comes last: the target counts as measured if this file exists.
    files = dict(sorted(answer["files"].items(), key=lambda entry: entry[0] == "result.json"))
    fetch(link, request["place"], files, work / target)


class _ProgressReporter:
    """Reports a target's beats, at most one in `REPORT_EVERY_S`."""

    def __init__(self, label: str, report: Report) -> None:
        self._label, self._report = label, report
        self._reported_at = time.monotonic()

    def __call__(self, beat: Beat) -> None:
        now = time.monotonic()
        if now - self._reported_at >= REPORT_EVERY_S:
            self._reported_at = now
            self._report(f"{self._label}: {beat.words()}")


def self_test(link: Link, device_folder: str, *, allow_no_target: bool = False) -> list[str]:
    """Run a bundle's self-test on the device.

    Args:
        link: The link to the device.
        device_folder: The bundle's folder, relative to the device's folder.
        allow_no_target: Whether a bundle without a target that can run there passes.

    Returns:
        The lines that the self-test printed.

    Raises:
        StageError: The self-test failed.
        DeviceCannot: No target of the bundle can run there.
    """
    answer = link.call("selftest", place=device_folder)
    last_lines = "\n".join(answer["last"])
    if answer["code"] == 4 and not allow_no_target:
        raise DeviceCannot(
            "No target of the bundle can run on the device",
            where=link.where,
            why=last_lines,
            hint="install the packages of the bundle's requirements.txt there, or set another Python with "
            f"devices.{link.name}.python",
        )
    if answer["code"] not in (0, 4):
        raise StageError(
            "The bundle's self-test failed on the device",
            where=link.where,
            why=last_lines,
            hint="leave the target that failed out of package.targets, or calibrate it again",
        )
    return list(answer["lines"])


def measurement_folder(inputs: MeasurementInputs, key: str) -> str:
    """Return the folder of a measurement, relative to the device's folder.

    Each measurement has a folder of its own, because several devices of a profile may be the same board.
    """
    return f"measured/{str(inputs.results['package'].digest)[:16]}-{key[:16]}"
