"""What to ship to each device that was measured, and its Pareto front: for `kdpipe pick`. Light.

Figures of two devices are never held against each other: a target may be the one for a board and slow on
another. So each device has a front of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.store import Store
from stages import DEVICE

Pick = Callable[..., dict[str, Any]]

OF_THE_HOST = ("latency", "slowdown", "peak_memory")
"""Beginnings of metrics that were judged by what the host measured: they say nothing of a device."""


def device_picks(
    store: Store, measured: str, found: Mapping[str, Any], float_top1: float, pick: Pick
) -> list[dict[str, Any]]:
    """A pick for each device whose measurement, of these very files, lies in the store; newest first.

    measured: digest of the measure artefact that the devices' figures belong to. found: content of
    `gates.json`. pick: the function that picks, `stages.gating.picking.pick`. Each entry has `device` (its
    processor), `made_at` and what `pick` returns.
    """
    manifests = [
        one for one in store.manifests(DEVICE.name) if one.key_parts["inputs"].get("measure") == measured
    ]
    entries, told = [], set()
    for manifest in sorted(manifests, key=lambda one: one.created, reverse=True):
        scorecard = json.loads(
            (store.artefact_path(DEVICE.name, manifest.key) / "scorecard.json").read_text(encoding="utf-8")
        )
        name = device_name(scorecard["device"])
        if name in told:  # an earlier measurement of the same kind of board
            continue
        told.add(name)
        judgements = judged_anywhere(found["judgements"])
        chosen = pick(scorecard["rows"], float_top1=float_top1, judgements=judgements)
        entries.append({"device": name, "made_at": manifest.created, **chosen})
    return entries


def judged_anywhere(judgements: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The judgements of accuracy, agreement and size, which hold for a file wherever it runs."""
    return [one for one in judgements if not one["metric"].startswith(OF_THE_HOST)]


def device_name(facts: Mapping[str, Any]) -> str:
    """The board if it says what it is, else its processor."""
    machine = facts["machine"]
    cores = machine["cores"]
    return f"{facts.get('board') or machine['cpu']}, {cores} core{'s' * (cores != 1)}"
