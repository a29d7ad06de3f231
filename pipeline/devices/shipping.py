"""`kdpipe ship`: releases on a device, each a bundle in a folder by its digest, one of them current."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.console.gates_text import read_gates
from pipeline.devices.files import deliver, items_of
from pipeline.devices.jobs import self_test
from pipeline.devices.link import Link, LinkLost
from pipeline.errors import DeviceCannot, KdpipeError, StageError, UsageError
from pipeline.running.run_state import StageResult
from pipeline.store.store import Store


def verified_bundle(store: Store, packed: StageResult) -> Path:
    """The bundle's folder, every file of its artefact read anew. Raises StageError if it is damaged."""
    damage = store.verify(packed.name, str(packed.key))
    if damage or packed.path is None:
        raise StageError(
            "The bundle is damaged and was not shipped",
            where=str(packed.path),
            why=str(damage),
            hint="run the same command again: the bundle is packed anew",
        )
    return packed.path / "bundle"


def may_ship(results: Sequence[StageResult]) -> bool:
    """Whether there is a target to ship, and the one that the bundle takes by default misses no gate."""
    made = {result.name: result for result in results}
    gate = made["gate"]
    assert gate.path is not None
    found = read_gates(gate.path)
    default = made["package"].metrics["default_target"]
    missed = [one["target"] for one in found["judgements"] if one["status"] == "missed"]
    return found["pick"]["target"] is not None and default not in missed


def ship(link: Link, bundle: Path, digest: str, *, keep: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Installs a bundle as the release `digest` and makes it the current one once its self-test passed there.

    Returns `current`, `previous`, `removed` (digests), `sent_bytes` and `self_test` (lines).
    Raises StageError or DeviceCannot; then the release in use stays in use, and a new one that failed its
    self-test is taken away again.
    """
    place = f"releases/{digest}"
    sent = deliver(link, items_of(bundle), place, tell)
    tell(f"{link.name}: the release is there ({sent} bytes sent)")
    try:
        said = self_test(link, place)
    except LinkLost:
        raise  # nothing is wrong with the release: the next call goes on with it
    except (StageError, DeviceCannot):
        with contextlib.suppress(KdpipeError):
            link.ask("discard", digest=digest)
        raise
    switched = link.ask("switch", digest=digest, ship=True, keep=keep)
    return {**switched, "sent_bytes": sent, "self_test": said}


def roll_back(link: Link) -> dict[str, Any]:
    """Makes the release before the current one current again, once its self-test passed there.

    Returns `current`, `previous`, `removed`. Raises UsageError if there is none before it.
    """
    told = link.ask("releases")
    before = told["before"]
    if before is None:
        count = len(told["releases"])
        raise UsageError(
            "There is no earlier release on the device",
            where=link.where,
            why=f"{count} release{'s' * (count != 1)} there" if count else "nothing was shipped there",
            hint=f"kdpipe ship {link.name} PROFILE --list shows what there is",
        )
    self_test(link, f"releases/{before}")
    return link.ask("switch", digest=before, ship=False, keep=0)


def releases(link: Link) -> dict[str, Any]:
    """`releases` (the newest first; `digest`, `name`, `default_target`, `current`, `size_bytes`), `current`
    and `before`, what a rollback would go to."""
    return link.ask("releases")
