"""What to ship to each device that was measured, and its Pareto front: for `kdpipe pick`. Light.

Figures of two devices are never held against each other: a target may be the one for a board and slow on
another. So each device has a front of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.running.plan import resolve
from pipeline.store.keys import canonical
from pipeline.store.store import Store
from stages import DEVICE, JUDGE_THERE

Pick = Callable[..., dict[str, Any]]

HARDWARE = ("cpu", "architecture", "cores", "memory_gib", "board")
"""What tells two devices apart, beside the GPU's name and the targets."""


def device_picks(
    store: Store, measured: str, found: Mapping[str, Any], float_top1: float, pick: Pick
) -> list[dict[str, Any]]:
    """A pick for each device whose measurement, of these very files, lies in the store; newest first.

    Of equal hardware with the same targets only the newest counts, whatever versions were installed there.

    measured: digest of the measure artefact that the devices' figures belong to. found: content of
    `gates.json`. pick: the function that picks, `stages.gating.picking.pick`. Each entry has `device` (in
    words), `targets`, `made_at` and what `pick` returns.
    """
    manifests = [
        one
        for one in store.manifests(DEVICE.name)
        if one.key_parts["inputs"].get("measure") == measured and one.key_parts["version"] == DEVICE.version
    ]
    entries, told = [], set()
    for manifest in sorted(manifests, key=lambda one: one.created, reverse=True):
        device, targets = manifest.key_parts["device"], list(manifest.key_parts["targets"])
        same = canonical([*(device[fact] for fact in HARDWARE), device["cuda"].get("name"), targets])
        if same in told:  # an earlier measurement of such a device
            continue
        told.add(same)
        folder = store.artefact_path(DEVICE.name, manifest.key)
        scorecard = json.loads((folder / "scorecard.json").read_text(encoding="utf-8"))
        # Of the images that were run there, which may be few: top-1 of others says nothing about them.
        own_top1 = (scorecard["float_top1"] or {}).get("student", float_top1)
        scorecard["rows"] = _rows(scorecard)
        judgements = resolve(JUDGE_THERE)(found["gates"], folder, scorecard)
        chosen = pick(scorecard["rows"], float_top1=own_top1, judgements=judgements)
        name = device_name(scorecard["device"])
        entries.append({"device": name, "targets": targets, "made_at": manifest.created, **chosen})
    return entries


def _rows(scorecard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """With why a target that was timed there has no accuracy, which a device's rows tell apart."""
    return [{**row, "why_not": row["why_not"] or row["accuracy_why_not"]} for row in scorecard["rows"]]


def device_name(facts: Mapping[str, Any]) -> str:
    """The board, if it says what it is, and its processor: makers give one name to many machines."""
    cores = facts["machine"]["cores"]
    told = dict.fromkeys((facts.get("board"), facts["machine"]["cpu"]))
    return ", ".join([*(name for name in told if name), f"{cores} core{'s' * (cores != 1)}"])
