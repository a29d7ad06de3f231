"""What to ship to each device that was measured, and its Pareto front: for `kdpipe pick`.

Figures of two devices are never compared: a target may be the fastest on one board and slow on another.
So each device has a front of its own. This module imports nothing heavy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.running.key_facts import resolve
from pipeline.store.keys import canonical
from pipeline.store.store import Store
from stages import DEVICE, JUDGE_THERE

Pick = Callable[..., dict[str, Any]]

HARDWARE = ("cpu", "architecture", "cores", "memory_gib", "board")
"""The facts that distinguish two devices, beside the GPU's name and the targets."""


def device_picks(
    store: Store, measure_digest: str, gates_document: Mapping[str, Any], float_top1: float, pick: Pick
) -> list[dict[str, Any]]:
    """Return a pick for each device that has measured these files, the newest measurement first.

    Of equal hardware with the same targets only the newest measurement counts, whatever versions were
    installed there.

    Args:
        store: The store with the measurements.
        measure_digest: Digest of the measure artefact that the devices' figures belong to.
        gates_document: The content of `gates.json`.
        float_top1: The float student's top-1 on all test images, in percent.
        pick: The function that picks: `stages.gating.picking.pick`.

    Returns:
        For each device `device` (in words), `targets`, `made_at` and the fields that `pick` returns.
    """
    manifests = [
        manifest
        for manifest in store.manifests(DEVICE.name)
        if manifest.key_parts["inputs"].get("measure") == measure_digest
        and manifest.key_parts["version"] == DEVICE.version
    ]
    entries, listed = [], set()
    for manifest in sorted(manifests, key=lambda manifest: manifest.created, reverse=True):
        device, targets = manifest.key_parts["device"], list(manifest.key_parts["targets"])
        identity = canonical([*(device[fact] for fact in HARDWARE), device["cuda"].get("name"), targets])
        if identity in listed:  # an earlier measurement of such a device
            continue
        listed.add(identity)
        folder = store.artefact_path(DEVICE.name, manifest.key)
        scorecard = json.loads((folder / "scorecard.json").read_text(encoding="utf-8"))
        # The device may have run few of the images, so the reference is the float top-1 on the same ones.
        device_float_top1 = (scorecard["float_top1"] or {}).get("student", float_top1)
        scorecard["rows"] = _rows(scorecard)
        judgements = resolve(JUDGE_THERE)(gates_document["gates"], folder, scorecard)
        device_pick = pick(scorecard["rows"], float_top1=device_float_top1, judgements=judgements)
        name = device_name(scorecard["device"])
        entries.append({"device": name, "targets": targets, "made_at": manifest.created, **device_pick})
    return entries


def _rows(scorecard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows in the form that `pick` reads: `why_not` also says why the accuracy is missing."""
    return [{**row, "why_not": row["why_not"] or row["accuracy_why_not"]} for row in scorecard["rows"]]


def device_name(facts: Mapping[str, Any]) -> str:
    """Return the board's name, if the device reports it, with its processor and its number of cores.

    The board's name is not enough, because makers give one name to many machines.
    """
    cores = facts["machine"]["cores"]
    names = dict.fromkeys((facts.get("board"), facts["machine"]["cpu"]))
    return ", ".join([*(name for name in names if name), f"{cores} core{'s' * (cores != 1)}"])
