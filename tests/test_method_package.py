"""A package of a third party, installed as its users would, brings a method into a profile."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import ROOT, environment

PROFILE = """
compute: {device: cpu, precision: fp32, threads: 1}
data: {name: digits, image_size: 16}
teacher: {model: test_resnet}
student: {model: test_byobnet}
train: {epochs: 1, batch_size: 32, fraction: 0.12}
distill:
  epochs: 1
  batch_size: 32
  fraction: 0.12
  methods:
    - {name: cosine, margin: 0.1}
    - {name: kd, weight: 0.5}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the package that docs/reference/methods.md shows."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    text = (ROOT / "docs" / "reference" / "methods.md").read_text(encoding="utf-8")
    for name, content in re.findall(r"^`(\w+\.(?:py|toml))`:\n\n```\w+\n(.*?)^```", text, re.M | re.S):
        (source / name).write_text(content, encoding="utf-8")
    assert sorted(path.suffix for path in source.iterdir()) == [".py", ".py", ".toml"]
    # No index is asked: what the package is built with and what it needs are here already.
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    pip = [sys.executable, "-m", "pip", "install", *quiet, "--target", str(target), str(source)]
    subprocess.run(pip, check=True, timeout=120)
    return target


def kdpipe(installed: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    found = os.pathsep.join([str(ROOT), str(installed)])
    command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    surroundings = environment(PYTHONPATH=found)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=surroundings)


def test_a_profile_distils_by_the_installed_method(installed: Path, tmp_path: Path) -> None:
    profile = tmp_path / "p.yaml"
    profile.write_text(PROFILE, encoding="utf-8")
    done = kdpipe(installed, "distill", profile, "--store", tmp_path / "store")
    assert done.returncode == 0, done.stderr
    (history,) = (tmp_path / "store").glob("artefacts/distill/*/history.csv")
    with history.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert 0.0 < float(row["loss_cosine"]) < 2.0
    assert float(row["loss_kd"]) > 0.0


def test_its_keys_are_checked_like_those_of_the_built_in_ones(installed: Path, tmp_path: Path) -> None:
    profile = tmp_path / "p.yaml"
    profile.write_text(PROFILE.replace("margin: 0.1", "margin: 5"), encoding="utf-8")
    done = kdpipe(installed, "plan", profile, "--store", tmp_path / "store")
    assert done.returncode == 2
    assert "p.yaml:12:30" in done.stderr
    assert "distill.methods.0.margin" in done.stderr
