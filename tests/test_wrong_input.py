"""A user's mistakes: exit code 1 or 2, one clear message, and the store as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.command import STARTER, kdpipe, write_profile

Change = Callable[[dict[str, Any], Path], None]


def image_folder(root: Path, classes: int, images: int = 12) -> None:
    rng = np.random.default_rng(0)
    for label in range(classes):
        (root / f"class{label}").mkdir(parents=True)
        for index in range(images):
            pixels = rng.integers(0, 256, size=(20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"class{label}" / f"{index}.png")


def unknown_key(profile: dict[str, Any], folder: Path) -> None:
    profile["train"]["epoch"] = 3


def wrong_type(profile: dict[str, Any], folder: Path) -> None:
    profile["train"]["epochs"] = "many"


def negative_epochs(profile: dict[str, Any], folder: Path) -> None:
    profile["train"]["epochs"] = -1


def unknown_model(profile: dict[str, Any], folder: Path) -> None:
    profile["student"]["model"] = "mobilenetv3_smal_050"


def missing_data(profile: dict[str, Any], folder: Path) -> None:
    profile["data"] = {"name": "image_folder", "root": str(folder / "nowhere")}


def no_root(profile: dict[str, Any], folder: Path) -> None:
    profile["data"] = {"name": "cifar100"}


def other_architecture(profile: dict[str, Any], folder: Path) -> None:
    save_file({"layer.weight": torch.zeros(3, 3)}, folder / "other.safetensors")
    profile["teacher"]["checkpoint"] = str(folder / "other.safetensors")


def no_checkpoint(profile: dict[str, Any], folder: Path) -> None:
    profile["teacher"]["checkpoint"] = str(folder / "none.safetensors")


def one_class(profile: dict[str, Any], folder: Path) -> None:
    image_folder(folder / "one", classes=1)
    profile["data"] = {"name": "image_folder", "root": str(folder / "one"), "image_size": 16}


def truncated_image(profile: dict[str, Any], folder: Path) -> None:
    image_folder(folder / "cut", classes=3)
    file = folder / "cut" / "class1" / "5.png"
    file.write_bytes(file.read_bytes()[:200])
    profile["data"] = {"name": "image_folder", "root": str(folder / "cut"), "image_size": 16}


def unknown_optimizer(profile: dict[str, Any], folder: Path) -> None:
    profile["train"]["optimizer"] = "adamv"


def unknown_runtime(profile: dict[str, Any], folder: Path) -> None:
    profile["targets"] = ["onyxruntime-fp32"]


def precision_not_offered(profile: dict[str, Any], folder: Path) -> None:
    profile["targets"] = ["onnxruntime-fp16"]


CASES: list[tuple[Change, list[str]]] = [
    (unknown_key, ["epoch", "did you mean", "epochs"]),
    (wrong_type, ["epochs", "many", "profile.yaml:"]),
    (negative_epochs, ["epochs", "-1", "profile.yaml:"]),
    (unknown_model, ["mobilenetv3_smal_050", "mobilenetv3_small_050"]),
    (missing_data, ["nowhere", "data.root"]),
    (no_root, ["cifar100", "data.root", "data.download"]),
    (other_architecture, ["other.safetensors"]),
    (no_checkpoint, ["none.safetensors"]),
    (one_class, ["class"]),
    (truncated_image, ["5.png"]),
    (unknown_optimizer, ["adamv", "adam"]),
    (unknown_runtime, ["onyxruntime", "onnxruntime"]),
    (precision_not_offered, ["onnxruntime", "fp16"]),
]


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(("change", "words"), CASES, ids=[change.__name__ for change, _ in CASES])
def test_a_mistake_is_told_clearly_and_leaves_no_trace(
    change: Change, words: list[str], tmp_path: Path
) -> None:
    profile = copy.deepcopy(STARTER)
    change(profile, tmp_path)
    file = write_profile(tmp_path / "profile.yaml", profile)
    store = tmp_path / "store"
    finished = kdpipe("run", file, "--store", store)
    assert finished.returncode in (1, 2), finished.stderr
    assert finished.stdout == ""
    said = finished.stderr
    assert "Traceback" not in said
    assert said.count("error:") == 1
    for word in words:
        assert word in said, said
    assert not store.exists(), listing(store)


def test_a_store_with_work_in_it_stays_as_it_was(tmp_path: Path) -> None:
    good = write_profile(tmp_path / "good.yaml", STARTER)
    store = tmp_path / "store"
    made = kdpipe("train", good, "--store", store)
    assert made.returncode == 0, made.stderr
    before = listing(store)
    for change in (unknown_model, truncated_image):
        profile = copy.deepcopy(STARTER)
        change(profile, tmp_path)
        bad = write_profile(tmp_path / "bad.yaml", profile)
        finished = kdpipe("run", bad, "--store", store)
        assert finished.returncode in (1, 2), finished.stderr
        assert listing(store) == before


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    profile = copy.deepcopy(STARTER)
    for change in (unknown_key, negative_epochs):
        change(profile, tmp_path)
    profile["stuent"] = {}
    finished = kdpipe(
        "plan", write_profile(tmp_path / "profile.yaml", profile), "--store", tmp_path / "store"
    )
    assert finished.returncode == 2
    for word in ("epoch", "-1", "stuent", "student"):
        assert word in finished.stderr
    assert finished.stderr.count("profile.yaml:") >= 3
