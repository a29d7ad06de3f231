"""The work on one device: files delivered, the self-test, each target measured and brought back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.devices.files import deliver, fetch, item_of, items_of
from pipeline.devices.images import Sent, TestImages
from pipeline.devices.link import Link
from pipeline.errors import DeviceCannot, KdpipeError, StageError
from pipeline.heartbeat import Beat
from pipeline.profile.loading import LoadedProfile
from pipeline.running.plan import resolve
from pipeline.running.run_state import StageResult
from pipeline.store.store import Store
from stages import BUILT_ON_DEVICES, DEVICE_REQUEST

SAY_EVERY_S = 30.0
"""How often it is said how far a measurement on a device is."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Line:
    """What is to be measured: the line's artefacts, ONNX files that devices build from, and test images."""

    profile: LoadedProfile
    store: Store
    made: Mapping[str, StageResult]
    sources: Path
    images: TestImages

    def folder(self, stage: str) -> Path:
        path = self.made[stage].path
        assert path is not None
        return path


def targets_of(name: str, profile: LoadedProfile) -> list[str]:
    """The names of the targets that are meant for a device."""
    named = [str(target["name"]) for target in profile.sections["targets"]]
    wanted = profile.sections["devices"][name]["targets"]
    return [one for one in named if wanted is None or one in wanted]


def is_built_there(target: str) -> bool:
    """Return whether the device builds the target's file: one that fits no other device."""
    return bool(resolve(BUILT_ON_DEVICES)(target))


def take(
    link: Link, line: Line, targets: Sequence[str], work: Path, key: str, *, anew: bool, tell: Tell
) -> dict[str, Any]:
    """Has every target measured on the device and brings the results into `work`, target by target.

    Returns what was measured, and by target why others were not. A target that is in `work` is done.
    """
    bundle, place = line.folder("package") / "bundle", place_of(line, key)
    if anew:
        link.ask("remove", place=f"{place}/results")
    sent = deliver(link, items_of(bundle), f"{place}/bundle", tell)
    tell(f"{link.name}: the bundle is there ({sent} bytes sent)")
    self_test(link, f"{place}/bundle", may_have_none=any(map(is_built_there, targets)))
    sources = {f"{name}.onnx": line.sources / f"{name}.onnx" for name in targets if is_built_there(name)}
    if sources:
        deliver(link, {name: item_of(file) for name, file in sources.items()}, f"{place}/onnx", tell)
    images = line.images.deliver(link, tell)
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    skipped: dict[str, str] = {}
    failed: list[KdpipeError] = []
    for target in targets:
        if not is_built_there(target) and target not in manifest["targets"]:
            skipped[target] = (
                "it is not in the bundle: it was not built here, or package.targets leaves it out"
            )
            continue
        if (work / target / "result.json").is_file():
            tell(f"{link.name}: {target} was measured already")
            continue
        begun = time.monotonic()
        try:
            _take_one(link, line, target, manifest, images, work, key, tell)
        except StageError as error:
            failed.append(error)
            tell(f"{link.name}: {target} failed: {error.what}")
            continue
        why_not = json.loads((work / target / "result.json").read_text(encoding="utf-8"))["why_not"]
        seconds = time.monotonic() - begun
        tell(f"{link.name}: {target} " + ("cannot be measured" if why_not else f"done in {seconds:.1f} s"))
    if failed:
        raise failed[0]
    return {"targets": list(targets), "skipped": skipped, "images": images.count if images else 0}


def _take_one(
    link: Link,
    line: Line,
    target: str,
    manifest: Mapping[str, Any],
    images: Sent | None,
    work: Path,
    key: str,
    tell: Tell,
) -> None:
    place = place_of(line, key)
    request = resolve(DEVICE_REQUEST)(
        target, place, images.place if images else None, manifest, line.profile.sections
    )
    answer = link.ask("measure", heard=_Saying(f"{link.name}: {target}", tell), **request)
    # The result last: it says that all else is there.
    files = dict(sorted(answer["files"].items(), key=lambda entry: entry[0] == "result.json"))
    fetch(link, request["place"], files, work / target)


class _Saying:
    """Says now and then how far a target is."""

    def __init__(self, named: str, tell: Tell) -> None:
        self._named, self._tell = named, tell
        self._said_at = time.monotonic()

    def __call__(self, beat: Beat) -> None:
        now = time.monotonic()
        if now - self._said_at >= SAY_EVERY_S:
            self._said_at = now
            self._tell(f"{self._named}: {beat.words()}")


def self_test(link: Link, place: str, *, may_have_none: bool = False) -> list[str]:
    """Runs the bundle's self-test on the device; what it said.

    Raises StageError if it failed, DeviceCannot if no target can run there (unless `may_have_none`).
    """
    told = link.ask("selftest", place=place)
    said = "\n".join(told["last"])
    if told["code"] == 4 and not may_have_none:
        raise DeviceCannot(
            "No target of the bundle can run on the device",
            where=link.where,
            why=said,
            hint="install there what the bundle's requirements.txt names, or name another Python with "
            f"devices.{link.name}.python",
        )
    if told["code"] not in (0, 4):
        raise StageError(
            "The bundle's self-test failed on the device",
            where=link.where,
            why=said,
            hint="leave the target that failed out of package.targets, or calibrate it anew",
        )
    return list(told["lines"])


def place_of(line: Line, key: str) -> str:
    """Where a measurement lies on its device: of its own, for a board may be several devices of a profile."""
    return f"measured/{str(line.made['package'].digest)[:16]}-{key[:16]}"
