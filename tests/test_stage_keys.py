"""What the keys of the real stages hold, as `kdpipe plan` shows it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from pipeline.profile.loading import load
from pipeline.running.plan import make_plan
from pipeline.store.store import Store
from tests.command import ROOT, STARTER, document, environment, kdpipe, write_profile


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a profile and a store that holds its artefacts up to `export`."""
    folder = tmp_path_factory.mktemp("libraries")
    file = write_profile(folder / "p.yaml", STARTER)
    finished = kdpipe("run", file, "--store", folder / "store", "--until", "export", "--json")
    assert finished.returncode == 0, finished.stderr
    return folder


def planned_with(
    made: Path, folder: Path, *options: str, **versions: str
) -> subprocess.CompletedProcess[str]:
    """The plan up to `export` with these distributions before all installed ones."""
    folder.mkdir(exist_ok=True)
    for name, number in versions.items():
        (folder / f"{name}-{number}.dist-info").mkdir()
    words = ["plan", made / "p.yaml", "--store", made / "store", "--until", "export", *options]
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(PYTHONPATH=f"{folder}:{ROOT}"),
    )


def reasons(made: Path, folder: Path, **versions: str) -> dict[str, set[tuple[str, str, Any, Any]]]:
    """By stage; inputs that have yet to be remade are left out."""
    stages = document(planned_with(made, folder, "--json", **versions))["stages"]
    return {
        stage["name"]: {
            (told["kind"], told["key"], told["old"], told["new"])
            for told in stage["reasons"]
            if told["kind"] != "input"
        }
        for stage in stages
    }


def public(distribution: str) -> str:
    return version(distribution).partition("+")[0]


def minor(distribution: str) -> str:
    return ".".join(public(distribution).split(".")[:2])


def test_without_an_upgrade_all_is_there(made: Path, tmp_path: Path) -> None:
    assert set(map(len, reasons(made, tmp_path / "nothing").values())) == {0}


def test_an_upgrade_of_torch_makes_stale_what_it_computed(made: Path, tmp_path: Path) -> None:
    told = reasons(made, tmp_path / "new", torch="99.1.2+cu140")
    change = ("library", "torch", minor("torch"), "99.1")
    assert told["train"] == told["distill"] == told["evaluate"] == {change}
    assert told["export"] == {("library", "torch", public("torch"), "99.1.2")}
    shown = planned_with(made, tmp_path / "new").stdout
    assert f"library torch: {minor('torch')} → 99.1" in shown


def test_a_patch_release_does_not_train_again(made: Path, tmp_path: Path) -> None:
    told = reasons(made, tmp_path / "patch", torch=f"{minor('torch')}.999")
    assert told["train"] == told["distill"] == told["evaluate"] == set()
    assert told["export"] == {("library", "torch", public("torch"), f"{minor('torch')}.999")}


def test_a_library_counts_only_where_it_shapes_the_output(made: Path, tmp_path: Path) -> None:
    told = reasons(made, tmp_path / "exporter", onnxscript="99.0")
    assert told["train"] == told["distill"] == told["evaluate"] == set()
    assert told["export"] == {("library", "onnxscript", public("onnxscript"), "99.0")}


def quantize_parts(folder: Path, *overrides: str, targets: str = "[onnxruntime-int8]") -> dict[str, Any]:
    """What the key of `quantize` is made from."""
    file = write_profile(folder / "p.yaml", STARTER)
    profile = load(file, [f"targets={targets}", *overrides])
    plan = make_plan(profile, Store(folder / "store"), until="quantize")
    return dict(plan[-1].key_parts)


OF_THE_FINE_TUNE = ("seed=5", "compute.threads=1", "distill.learning_rate=0.5", "distill.baseline=true")


@pytest.mark.parametrize(
    ("targets", "more"),
    [("[onnxruntime-int8]", ("quantize.distill.when=never",)), ("[onnxruntime-fp32]", ())],
)
def test_without_a_fine_tune_quantize_depends_on_nothing_that_only_it_reads(
    tmp_path: Path, targets: str, more: tuple[str, ...]
) -> None:
    parts = quantize_parts(tmp_path, *more, targets=targets)
    assert parts["profile"].keys() == {"data", "quantize", "targets"}
    assert not {"torch", "timm"} & parts["libraries"].keys()
    for change in OF_THE_FINE_TUNE:
        assert quantize_parts(tmp_path, *more, change, targets=targets) == parts, change
    assert quantize_parts(tmp_path, *more, "quantize.images=300", targets=targets) != parts


@pytest.mark.parametrize("when", ["missed", "always"])
def test_with_a_fine_tune_quantize_depends_on_all_that_it_reads(tmp_path: Path, when: str) -> None:
    parts = quantize_parts(tmp_path, f"quantize.distill.when={when}")
    assert parts["profile"].keys() == {"seed", "compute", "data", "distill", "quantize", "targets"}
    assert {"torch", "timm", "onnxruntime"} <= parts["libraries"].keys()
    for change in OF_THE_FINE_TUNE:
        assert quantize_parts(tmp_path, f"quantize.distill.when={when}", change) != parts, change
