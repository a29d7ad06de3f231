"""The table of networks: its profiles fit each other, and no target goes untold."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.profile.loading import load
from stages.models.create import check
from tests.command import ROOT

PROFILES = sorted((ROOT / "benchmarks" / "networks").glob("[!_]*.yaml"))
PROGRAM = ROOT / "benchmarks" / "bench_networks.py"


def settings(path: Path) -> Any:
    return load(str(path)).settings(["data", "teacher", "student", "train", "distill", "compute", "seed"])


@pytest.mark.long
@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_each_network_takes_the_images(path: Path) -> None:
    profile = settings(path)
    check(profile.student, classes=10, channels=3, image_size=profile.data.image_size)


def test_one_teacher_serves_all_and_no_two_students_are_alike() -> None:
    profiles = [settings(path) for path in PROFILES]
    assert len(profiles) == 8
    first, *others = profiles
    for other in others:
        for part in ("data", "teacher", "train", "compute", "seed"):
            assert getattr(other, part) == getattr(first, part)
    assert len({profile.student.model for profile in profiles}) == len(profiles)


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_run_that_fails_gives_every_target_its_reason(tmp_path: Path) -> None:
    (tmp_path / "train.npz").write_bytes(b"no archive")
    store, output = tmp_path / "store", tmp_path / "table.md"
    targets = ("onnxruntime-fp32", "openvino-int8")
    done = bench(
        "--data", tmp_path, "--store", store, "--only", "vit", "resmlp", "--targets", *targets,
        "--output", output,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == output.read_text()
    for network in ("vit", "resmlp"):
        for target in targets:
            assert f"| {network} | {target} | no (1) |" in done.stdout
    (reason,) = [line for line in done.stdout.splitlines() if line.startswith("1. ")]
    assert reason.startswith("1. vit, resmlp; onnxruntime-fp32, openvino-int8: ")
    assert "an npz file is damaged" in reason


def test_no_images_are_told_before_anything_runs(tmp_path: Path) -> None:
    done = bench("--data", tmp_path)
    assert done.returncode == 2
    assert "contains no train.npz" in done.stderr


def test_a_target_without_figures_and_reason_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    table = importlib.import_module("networks_table")
    untold = table.Outcome("vit", {}, {}, fault=None, left_out={"ncnn-int8": "cannot be quantized"})
    silent, told = table.rows_of(untold, ["ncnn-fp32", "ncnn-int8"])
    assert (silent.silent, told.silent) == (True, False)
    assert "1. vit; ncnn-int8: cannot be quantized" in table.markdown([silent, told])
