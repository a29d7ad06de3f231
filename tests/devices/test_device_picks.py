"""What is picked for a device, by the images that were run there, of an artefact as it leaves one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.devices.picks import device_picks
from pipeline.stage import Context
from pipeline.store.store import Store
from stages import DEVICE
from stages.devices import accuracy
from stages.gating.picking import pick
from stages.measuring.scorecard import top1

TARGET = "tensorrt-fp16"
ALL = 1000
LABELS = (np.arange(ALL) % 10).astype(np.int32)
HARD = np.arange(ALL) % 20 == 0
"""Of the images the float networks err on these alone; they are half of the hundred that are sent."""


def wrong(where: np.ndarray) -> np.ndarray:
    return np.where(where, (LABELS + 1) % 10, LABELS)


def left_by_a_device(store: Store, base: Path, count: int, errs_on: np.ndarray) -> None:
    """An engine that only the device could build, run on `count` of the images."""
    for folder in ("measure/predictions", "evaluate"):
        (base / folder).mkdir(parents=True)
    np.save(base / "measure/predictions/labels.npy", LABELS)
    classes = {"predictions": wrong(HARD).tolist()}
    (base / "evaluate/metrics.json").write_text(json.dumps({"teacher": classes, "student": classes}))
    inputs = {name: base / name for name in ("measure", "evaluate")}
    with store.scratch() as output:
        (output / "predictions").mkdir()
        context = Context(SimpleNamespace(), inputs, output, work=base)
        images = accuracy.device_test_set(count, context)
        row: dict[str, Any] = {
            "model": "student",
            "target": TARGET,
            "runtime": "tensorrt",
            "precision": "fp16",
        }
        row |= {"top1": None, "why_not": None, "size_bytes": 1000, "latency": [latency()], **accuracy.NONE}
        if images is not None:
            (base / "there").mkdir()
            np.save(base / "there/predictions.npy", wrong(errs_on)[images.chosen])
        row |= accuracy.figures(TARGET, base / "there", images, context)
        document = {
            "device": {"board": "a board", "machine": {"cpu": "a processor", "cores": 4}},
            "settings": {"batch_sizes": [1], "threads": [1]},
            "float_top1": images.float_top1() if images else None,
            "rows": [row],
        }
        (output / "scorecard.json").write_text(json.dumps(document))
        hardware = {"cpu": "a", "architecture": "b", "cores": 4, "memory_gib": 8, "board": "c", "cuda": {}}
        parts = {"version": DEVICE.version, "inputs": {"measure": "m"}, "targets": [TARGET]}
        store.publish(
            output,
            stage=DEVICE.name,
            version=DEVICE.version,
            key_parts={**parts, "device": hardware},
            inputs={},
            metrics={},
            seconds=1.0,
            profile={"path": "a.yaml", "name": "a"},
        )


def latency() -> dict[str, Any]:
    return {"batch": 1, "threads": 1, "p50_ms": 1.0, "p50_ci_ms": [0.9, 1.1]}


def picked(store: Store, *gates: dict[str, Any]) -> dict[str, Any]:
    """On all images the float student has 95 %."""
    (pick_there,) = device_picks(store, "m", {"gates": gates, "judgements": []}, 95.0, pick)
    return pick_there


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_accuracy_is_held_against_the_float_student_on_the_same_images(store: Store, tmp_path: Path) -> None:
    left_by_a_device(store, tmp_path, 100, HARD)
    assert top1(wrong(HARD), LABELS)["top1"] == 95.0
    pick_there = picked(store)
    assert pick_there["target"] == TARGET, "it errs where the float student does"
    assert pick_there["front"][0]["top1"] == 50.0
    (missed,) = picked(store, {"metric": "accuracy", "min": 90})["rejected"]
    assert "misses a gate: accuracy is 50 [" in missed["why"]


def test_gates_reach_an_engine_that_the_host_never_ran(store: Store, tmp_path: Path) -> None:
    left_by_a_device(store, tmp_path, 100, np.arange(ALL) % 20 < 12)
    (missed,) = picked(store, {"metric": "accuracy_drop", "max": 2})["rejected"]
    assert "misses a gate: accuracy_drop against the student is 50 [" in missed["why"]
    pick_there = picked(
        store, {"metric": "accuracy_drop", "max": 90}, {"metric": "latency_p50_ms", "max": 0.001}
    )
    assert (pick_there["target"], pick_there["undecided"]) == (TARGET, []), "a limit on latency is the host's"


def test_without_images_it_is_said_that_accuracy_is_not_known(store: Store, tmp_path: Path) -> None:
    left_by_a_device(store, tmp_path, 0, HARD)
    pick_there = picked(store)
    assert pick_there["target"] is None
    assert pick_there["reason"] == "the accuracy of no target was measured"
    assert pick_there["unmeasured"] == [{"target": TARGET, "why": "accuracy_images of the device is 0"}]
