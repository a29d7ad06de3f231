"""`kdpipe compare` as a user meets it: real networks, real trainings, real processes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline.cli import main
from pipeline.comparing.comparison import plan_runs
from pipeline.comparing.method_specs import STUDENT_ALONE, read_specs
from pipeline.errors import UsageError
from pipeline.profile.loading import load
from pipeline.store.store import Store
from stages.comparing.summary import ALONE as REFERENCE
from tests.command import document, environment, kdpipe, write_profile
from tests.errors import raises

pytestmark = pytest.mark.long

PROFILE: dict[str, Any] = {
    "name": "tiny",
    "compute": {"device": "cpu", "precision": "fp32", "threads": 1},
    "data": {"name": "digits", "image_size": 16},
    "teacher": {"model": "test_resnet"},
    "student": {"model": "test_byobnet"},
    "train": {"epochs": 2, "batch_size": 32, "fraction": 0.3, "learning_rate": 0.005},
    "distill": {"epochs": 4, "batch_size": 32, "fraction": 0.12, "baseline": True, "learning_rate": 0.02},
}
ASKED = ("--methods", "kd,msdcrd:beta=0+kd:weight=0.5", "--seeds", "2")
DIVERGING = "kd:weight=1e60"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    write_profile(folder / "tiny.yaml", PROFILE)
    return folder


@dataclass(frozen=True)
class Called:
    returncode: int
    stdout: str
    stderr: str

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.stdout)
        return found


def call(*words: str | Path) -> Called:
    """The command line in this process, where torch is loaded already."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return Called(code, out.getvalue(), err.getvalue())


def compare(home: Path, *words: str, store: str = "store") -> Called:
    return call("compare", home / "tiny.yaml", "--store", home / store, *words)


@pytest.fixture(scope="module")
def first(home: Path) -> dict[str, Any]:
    ran = compare(home, *ASKED, "--json", "--html", str(home / "page.html"))
    assert ran.returncode == 0, ran.stderr
    return ran.document()


def runs_of(found: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(run["label"], run["seed"]): run for run in found["runs"]}


def test_the_document_tells_every_run_and_every_method(first: dict[str, Any], home: Path) -> None:
    assert (first["schema_version"], first["command"], first["split"]) == (1, "compare", "test")
    assert (first["images"], first["classes"], first["seeds"]) == (359, 10, [0, 1])
    labels = {STUDENT_ALONE, "kd", "msdcrd:beta=0+kd:weight=0.5"}
    assert set(runs_of(first)) == {(label, seed) for label in labels for seed in (0, 1)}
    assert first["reference"] == REFERENCE == STUDENT_ALONE
    assert first["methods"][0]["label"] == STUDENT_ALONE
    for run in first["runs"]:
        assert run["status"] == "ran"
        assert run["failed"] is None
        assert Path(run["path"]).is_dir()
        assert run["seconds"] > 0
        assert {"key", "digest", "top1", "last_top1", "val_top1", "last_val_top1"} <= run.keys()
    assert first["answer"]["text"].startswith("Did distillation pay? ")
    assert "error" not in first
    assert first["store"] == str(home / "store")


def test_the_figures_are_those_of_the_weights(first: dict[str, Any]) -> None:
    folder = Path(first["path"])
    table = np.load(folder / "predictions.npy")
    written = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert written["answer"] == first["answer"]
    assert table.shape == (2 + 2 * len(first["runs"]), first["images"])
    labels = table[0]
    for index, run in enumerate(first["runs"]):
        best, last = table[2 + 2 * index], table[3 + 2 * index]
        assert run["top1"] == pytest.approx(100 * (best == labels).mean(), abs=1e-5)
        assert run["last_top1"] == pytest.approx(100 * (last == labels).mean(), abs=1e-5)
    assert "path" not in json.dumps(written), "no place of this machine lies in an artefact"


def test_the_judgement_is_that_of_evaluate(first: dict[str, Any], home: Path) -> None:
    """The teacher, and the run that `kdpipe evaluate` would make as well."""
    words = ("--set", "distill.baseline=false", "--set", "distill.methods=[{name: kd}]")
    done = call("evaluate", home / "tiny.yaml", *words, "--store", home / "store", "--json")
    stages = {stage["name"]: stage for stage in done.document()["stages"]}
    assert stages["distill"]["status"] == "hit", "the profile's own seed is the first of a comparison"
    metrics = stages["evaluate"]["metrics"]
    assert metrics["teacher_top1"] == first["teacher"]["top1"]
    run = runs_of(first)["kd", 0]
    assert metrics["student_top1"] == run["top1"]
    assert metrics["agreement_with_teacher"] == run["agreement_with_teacher"]


def test_seeds_differ_and_methods_share_them(first: dict[str, Any]) -> None:
    runs = runs_of(first)
    assert len({run["digest"] for run in runs.values()}) == len(runs)
    for run in runs.values():
        assert load_file(Path(run["path"]) / "last" / "model.safetensors").keys()
        assert not (Path(run["path"]) / "baseline").exists()


def test_again_everything_is_a_hit_and_nothing_heavy_is_imported(first: dict[str, Any], home: Path) -> None:
    words = ("compare", home / "tiny.yaml", "--store", home / "store", *ASKED, "--json")
    again = kdpipe(*words, python=("-X", "importtime"))
    assert again.returncode == 0, again.stderr[-2000:]
    found = document(again)
    assert {run["status"] for run in found["runs"]} == {"hit"}
    assert (found["key"], found["methods"], found["answer"]) == (
        first["key"],
        first["methods"],
        first["answer"],
    )
    imported = set(re.findall(r"\|\s+([A-Za-z0-9_.]+)$", again.stderr, re.MULTILINE))
    assert "click" in imported
    assert not imported & {"torch", "numpy", "scipy", "timm", "jinja2", "sklearn"}


def test_the_table_ends_with_the_answer(first: dict[str, Any], home: Path) -> None:
    done = compare(home, *ASKED)
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["method", "seeds"]
    assert lines[1].startswith(STUDENT_ALONE)
    assert first["answer"]["text"] in lines
    assert Path(lines[-1].split()[-1]).name == "comparison.html"
    page = (home / "page.html").read_text(encoding="utf-8")
    assert page == (Path(first["path"]) / "comparison.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("first")
def test_a_choice_is_made_on_validation_without_a_look_at_the_test_images(home: Path) -> None:
    found = compare(home, *ASKED, "--split", "validation", "--json").document()
    assert {run["status"] for run in found["runs"]} == {"hit"}
    assert (found["split"], found["images"]) == ("validation", 144)
    assert any(run["best_epoch"] < 4 for run in found["runs"]), "else both epochs are one"
    for run in found["runs"]:
        assert run["top1"] == pytest.approx(run["val_top1"], abs=1e-3)
        assert run["last_top1"] == pytest.approx(run["last_val_top1"], abs=1e-3)


@pytest.mark.usefixtures("first")
def test_a_run_that_fails_is_told_and_the_others_go_on(home: Path) -> None:
    done = compare(home, "--methods", f"{DIVERGING},kd", "--seed-list", "0", "--json")
    assert done.returncode == 1
    found = done.document()
    assert found["error"]["exit_code"] == 1
    assert "diverged" in found["error"]["why"]
    run = runs_of(found)[DIVERGING, 0]
    assert (run["status"], run["top1"]) == ("failed", None)
    assert "diverged" in run["failed"]
    assert found["methods"][1]["label"] == "kd", "judged all the same"
    assert found["methods"][1]["best"]["gain_points"] is not None


@pytest.mark.usefixtures("first")
def test_methods_are_compared_with_the_first_one_without_the_student_alone(home: Path) -> None:
    words = ("--methods", "kd,msdcrd:beta=0+kd:weight=0.5", "--seed-list", "1", "--no-baseline", "--json")
    found = compare(home, *words).document()
    assert (found["reference"], len(found["runs"])) == ("kd", 2)
    assert found["answer"]["text"].startswith("Is a method better than kd? ")
    assert {run["status"] for run in found["runs"]} == {"hit"}


@pytest.mark.usefixtures("first")
def test_a_damaged_run_is_set_aside_and_made_again(first: dict[str, Any], home: Path) -> None:
    shutil.copytree(home / "store", home / "copy", symlinks=True)
    shutil.rmtree(home / "copy" / "artefacts" / "compare")
    run = runs_of(first)["kd", 1]
    file = home / "copy" / "artefacts" / "distill" / run["key"] / "model.safetensors"
    content = bytearray(file.read_bytes())
    whole = hashlib.sha256(content).hexdigest()
    content[-1] ^= 1
    file.write_bytes(content)
    # A disk's fault leaves no trace in the file's dates: its digest is remembered as it was.
    memo = Store(home / "copy").digests
    memo.remember(file, whole)
    memo.save()
    done = compare(home, *ASKED, "--json", store="copy")
    assert done.returncode == 0, done.stderr
    found = done.document()
    assert runs_of(found)["kd", 1]["digest"] == run["digest"]
    assert len([one for one in found["runs"] if one["status"] == "ran"]) == 1
    assert "damaged" in done.stderr


@pytest.mark.process
def test_runs_at_once_give_the_same_keys_and_weights(first: dict[str, Any], home: Path) -> None:
    """The teacher and the student alone are there; kd is made anew beside a run that fails."""
    shutil.copytree(home / "store", home / "at_once", symlinks=True)
    expected = runs_of(first)["kd", 0]
    shutil.rmtree(home / "at_once" / "artefacts" / "distill" / expected["key"])
    words = ("--methods", f"kd,{DIVERGING}", "--seeds", "1", "--jobs", "2", "--json")
    done = compare(home, *words, store="at_once")
    assert done.returncode == 1, done.stderr
    found = runs_of(done.document())
    assert (found["kd", 0]["key"], found["kd", 0]["digest"]) == (expected["key"], expected["digest"])
    assert "diverged" in found[DIVERGING, 0]["failed"]


def test_a_profile_that_is_edited_meanwhile_changes_no_run(first: dict[str, Any], home: Path) -> None:
    """The processes of --jobs start after the teacher's training, and do not read the file again."""
    file = write_profile(home / "edited.yaml", PROFILE)
    words = ("--methods", "kd", "--seeds", "1", "--jobs", "2", "--json")
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "compare", str(file), *words, "--store", str(home / "edited")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("train") and "started" in line:
            file.write_text("data: [")
            break
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert "error" not in json.loads(out)
    runs = runs_of(json.loads(out))
    assert {place: run["digest"] for place, run in runs.items()} == {
        place: runs_of(first)[place]["digest"] for place in runs
    }


def test_killed_and_called_again_it_goes_on(first: dict[str, Any], home: Path) -> None:
    words = [sys.executable, "-m", "pipeline", "compare", str(home / "tiny.yaml"), *ASKED]
    process = subprocess.Popen(
        [*words, "--store", str(home / "killed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("kd, seed 0") and "started" in line:
            time.sleep(0.05)
            os.killpg(process.pid, signal.SIGKILL)
            break
    assert process.wait(timeout=60) == -signal.SIGKILL
    process.stderr.close()
    found = compare(home, *ASKED, "--json", store="killed").document()
    runs = runs_of(found)
    assert runs[STUDENT_ALONE, 0]["status"] == "hit"
    assert runs["kd", 1]["status"] == "ran"
    assert {place: run["digest"] for place, run in runs.items()} == {
        place: run["digest"] for place, run in runs_of(first).items()
    }
    same = ("label", "best", "last", "seeds")
    assert [[one[name] for name in same] for one in found["methods"]] == [
        [one[name] for name in same] for one in first["methods"]
    ]


def test_all_leaves_out_what_does_not_fit(home: Path) -> None:
    """A transformer's class token is no map on which parts of the image could be judged."""
    base = load(home / "tiny.yaml", ["student.model=test_vit"])
    planned = partial(plan_runs, base, seeds=[0], store=Store(home / "none"))
    every = read_specs(["kd,all"])
    runs, unfit = planned(specs=every, baseline=True, memo=home / "none" / "memo")
    assert [one.label for one in unfit] == ["sdd"]
    assert "linear" in unfit[0].why
    assert {run.label for run in runs} == {STUDENT_ALONE, *(entry.label for entry in every)} - {"sdd"}
    with raises(UsageError, what="sdd does not fit"):
        planned(specs=read_specs(["sdd"]), baseline=True, memo=home / "none" / "memo")
    assert not (home / "none").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--methods", "kdd"), "did you mean 'kd'"),
        (("--methods", "kd:temperature=-1"), "--methods kd:temperature=-1"),
        (("--methods", "msdcrd:layers=[99]"), "does not fit"),
        (("--methods", "kd", "--no-baseline"), "nothing to compare"),
        (("--seeds", "2", "--seed-list", "1"), "exclude each other"),
        (("--seed-list", "one"), "whole numbers"),
        (("--html", "/absent/page.html"), "cannot be written"),
    ],
)
def test_mistakes_are_found_before_anything_runs(home: Path, words: tuple[str, ...], said: str) -> None:
    done = compare(home, *words, store="none")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (home / "none").exists()
