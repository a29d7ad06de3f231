"""`kdpipe ship`: install releases on a device.

A release is a bundle in a folder that is named by its digest. One release is the current one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.console.gates_text import read_gates
from pipeline.devices.files import Report, deliver, local_files
from pipeline.devices.jobs import self_test
from pipeline.devices.link import Link, LinkLost
from pipeline.errors import DeviceCannot, KdpipeError, StageError, UsageError
from pipeline.running.run_state import StageResult
from pipeline.store.store import Store


def verified_bundle(store: Store, package: StageResult) -> Path:
    """Return the bundle's folder after every file of its artefact was read and checked.

    Args:
        store: The store with the artefact.
        package: The result of the stage package.

    Raises:
        StageError: The artefact is damaged.
    """
    damage = store.verify(package.name, str(package.key))
    if damage or package.path is None:
        raise StageError(
            "The bundle is damaged and was not shipped",
            where=str(package.path),
            why=str(damage),
            hint="run the same command again: it packs the bundle again",
        )
    return package.path / "bundle"


def may_ship(results: Sequence[StageResult]) -> bool:
    """Return whether there is a target to ship and the bundle's default target misses no gate."""
    by_stage = {result.name: result for result in results}
    gate = by_stage["gate"]
    assert gate.path is not None
    gates_document = read_gates(gate.path)
    default = by_stage["package"].metrics["default_target"]
    missed = [
        judgement["target"] for judgement in gates_document["judgements"] if judgement["status"] == "missed"
    ]
    return gates_document["pick"]["target"] is not None and default not in missed


def ship(link: Link, bundle: Path, digest: str, *, keep: int, report: Report) -> dict[str, Any]:
    """Install a bundle as a release, and make it the current one after its self-test passed on the device.

    If an error is raised, the current release does not change. A new release that failed its self-test is
    removed.

    Args:
        link: The link to the device.
        bundle: The bundle's folder on this machine.
        digest: The digest of the bundle, which names the release.
        keep: How many releases stay on the device.
        report: Prints the progress.

    Returns:
        `current`, `previous`, `removed` (digests), `sent_bytes` and `self_test` (lines).

    Raises:
        StageError: The delivery or the self-test failed.
        DeviceCannot: No target of the bundle can run there, or the link broke.
    """
    release_folder = f"releases/{digest}"
    sent_bytes = deliver(link, local_files(bundle), release_folder, report)
    report(f"{link.name}: the release is on the device ({sent_bytes} bytes sent)")
    try:
        self_test_lines = self_test(link, release_folder)
    except LinkLost:
        raise  # the release is valid: the next call continues with it
    except (StageError, DeviceCannot):
        with contextlib.suppress(KdpipeError):
            link.call("discard", digest=digest)
        raise
    switched = link.call("switch", digest=digest, ship=True, keep=keep)
    return {**switched, "sent_bytes": sent_bytes, "self_test": self_test_lines}


def roll_back(link: Link) -> dict[str, Any]:
    """Make the previous release the current one again, after its self-test passed on the device.

    Args:
        link: The link to the device.

    Returns:
        `current`, `previous` and `removed` (digests).

    Raises:
        UsageError: There is no previous release.
        StageError: The self-test failed.
        DeviceCannot: No target of the release can run there, or the link broke.
    """
    document = link.call("releases")
    previous = document["before"]
    if previous is None:
        count = len(document["releases"])
        raise UsageError(
            "There is no earlier release on the device",
            where=link.where,
            why=f"the device has {count} release{'s' * (count != 1)}"
            if count
            else "nothing was shipped there",
            hint=f"kdpipe ship {link.name} PROFILE --list lists the releases",
        )
    self_test(link, f"releases/{previous}")
    return link.call("switch", digest=previous, ship=False, keep=0)


def releases(link: Link) -> dict[str, Any]:
    """Return the releases on the device.

    Args:
        link: The link to the device.

    Returns:
        `releases` (the newest first; `digest`, `name`, `default_target`, `current`, `size_bytes`),
        `current` and `before` (the release that a rollback goes to).
    """
    return link.call("releases")
