"""The whole line through the command line, on the flagship profile at reduced settings."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.command import PROFILES, document, environment, kdpipe, statuses
from tests.stages.test_report import in_browser

FLAGSHIP = PROFILES / "resnet_to_mobilenet.yaml"
REDUCED = [
    *("--set", "teacher.options={channels: [8, 16, 32, 64]}"),
    *("--set", "train.epochs=2", "--set", "distill.epochs=2"),
    *("--set", "train.fraction=0.5", "--set", "distill.fraction=0.3"),
    *("--set", "measure.duration_s=0.2", "--set", "measure.max_duration_s=0.4"),
    *("--set", "measure.min_samples=20", "--set", "quantize.images=64"),
]
LINE = "train distill evaluate export quantize build measure gate package report"
STAGES = LINE.split()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flagship") / "store"


@pytest.fixture(scope="module")
def first(store: Path) -> subprocess.CompletedProcess[str]:
    """`kdpipe run` of the flagship from an empty store."""
    return kdpipe("run", FLAGSHIP, *REDUCED, "--store", store)


def test_the_run_ends_with_scorecard_bundle_and_report(
    first: subprocess.CompletedProcess[str], store: Path
) -> None:
    assert first.returncode == 0, first.stderr
    for word in ("teacher", "onnxruntime-fp32", "onnxruntime-int8", "p50"):
        assert word in first.stdout
    report = re.search(r"\S+report\.html", first.stdout)
    bundle = re.search(r"\S+\.tar\.zst", first.stdout)
    assert report is not None
    assert bundle is not None
    assert Path(report.group()).is_file()
    assert Path(bundle.group()).is_file()
    assert "Traceback" not in first.stderr


def test_the_report_opens_in_a_browser(first: subprocess.CompletedProcess[str], tmp_path: Path) -> None:
    report = re.search(r"\S+report\.html", first.stdout)
    assert report is not None
    opened = in_browser(Path(report.group()), "--dump-dom", profile=tmp_path / "browser")
    assert opened.returncode == 0, opened.stderr[-2000:]
    assert "<h1>resnet_to_mobilenet</h1>" in opened.stdout
    assert opened.stdout.count("<svg") >= 6
    assert "tensorrt-fp16" in opened.stdout, "what was not built is told"


@pytest.mark.usefixtures("first")
def test_again_every_stage_is_a_hit_and_torch_is_never_imported(store: Path) -> None:
    again = kdpipe("run", FLAGSHIP, *REDUCED, "--store", store, "--json", python=("-X", "importtime"))
    assert again.returncode == 0, again.stderr[-2000:]
    assert statuses(again) == dict.fromkeys(STAGES, "hit")
    imported = set(re.findall(r"\|\s+([A-Za-z0-9_.]+)$", again.stderr, re.MULTILINE))
    assert "click" in imported, "the import list was read"
    assert not imported & {"torch", "numpy", "onnx", "onnxruntime", "timm", "pydantic", "sklearn"}


@pytest.mark.usefixtures("first")
def test_a_longer_measurement_measures_packs_and_reports_again(store: Path) -> None:
    changed = [*REDUCED, "--set", "measure.duration_s=0.25"]
    planned = kdpipe("plan", FLAGSHIP, *changed, "--store", store, "--json")
    found = statuses(planned)
    assert [name for name in STAGES if found[name] == "stale"] == ["measure", "gate", "package", "report"]
    measure = next(stage for stage in document(planned)["stages"] if stage["name"] == "measure")
    assert {"kind": "profile", "key": "measure.duration_s", "old": 0.2, "new": 0.25} in measure["reasons"]
    text = kdpipe("plan", FLAGSHIP, *changed, "--store", store).stdout
    assert re.search(r"measure\.duration_s\D+0\.2\D+0\.25", text)
    assert kdpipe("plan", FLAGSHIP, *changed, "--store", store, "--check").returncode == 5
    ran = kdpipe("run", FLAGSHIP, *changed, "--store", store, "--json")
    assert statuses(ran) == found | dict.fromkeys(["measure", "gate", "package", "report"], "ran")


@pytest.mark.usefixtures("first")
def test_another_student_keeps_the_teacher(store: Path) -> None:
    planned = kdpipe(
        "plan", FLAGSHIP, *REDUCED, "--set", "student.model=mobilenetv3_small_075", "--store", store, "--json"
    )
    found = statuses(planned)
    assert found["train"] == "hit"
    assert set(found.values()) == {"hit", "stale"}
    distill = next(stage for stage in document(planned)["stages"] if stage["name"] == "distill")
    assert any(reason["key"] == "student.model" for reason in distill["reasons"])


def bundle_of(store: Path) -> Path:
    planned = kdpipe("plan", FLAGSHIP, *REDUCED, "--store", store, "--json")
    stage: dict[str, Any] = next(s for s in document(planned)["stages"] if s["name"] == "package")
    return Path(stage["path"]) / "bundle"


@pytest.mark.usefixtures("first")
def test_the_self_test_passes_with_numpy_and_onnxruntime_alone(store: Path, tmp_path: Path) -> None:
    """An environment in which nothing else can be imported: kdpipe, torch, Pillow are not there."""
    alone = tmp_path / "packages"
    alone.mkdir()
    for name in ("numpy", "onnxruntime"):
        for file in metadata.files(name) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (alone / top).exists():
                (alone / top).symlink_to(Path(str(metadata.distribution(name).locate_file(top))).resolve())
    program = (
        f"import runpy, sys; sys.path.append({str(alone)!r}); sys.argv = ['predict.py', '--selftest'];"
        f"runpy.run_path({str(bundle_of(store) / 'predict.py')!r}, run_name='__main__')"
    )
    command = [sys.executable, "-I", "-S", "-c", program]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "self-test passed" in finished.stdout
    bare = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(alone)!r}); import torch"]
    assert subprocess.run(bare, capture_output=True, check=False).returncode != 0


@pytest.mark.slow
@pytest.mark.usefixtures("first")
def test_the_self_test_passes_in_a_fresh_environment(store: Path, tmp_path: Path) -> None:
    """The device's way: an archive, an empty environment, requirements.txt."""
    archive = next(bundle_of(store).parent.glob("*.tar.zst"))
    subprocess.run(["tar", "--zstd", "-xf", str(archive), "-C", str(tmp_path)], check=True)
    folder = tmp_path / "resnet_to_mobilenet"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    plain = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    install = [str(python), "-m", "pip", "install", "--quiet", "numpy", "onnxruntime"]
    subprocess.run(install, check=True, env=plain)
    finished = subprocess.run(
        [str(python), str(folder / "predict.py"), "--selftest"],
        capture_output=True,
        text=True,
        check=False,
        env=plain,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.usefixtures("first")
def test_a_required_target_that_cannot_be_built_is_exit_code_4(store: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine may be able to build it")
    targets = "targets=[onnxruntime-fp32, {name: tensorrt-fp32, required: true}]"
    ran = kdpipe("run", FLAGSHIP, *REDUCED, "--set", targets, "--store", store, "--json")
    assert ran.returncode == 4, ran.stderr
    found = document(ran)
    assert "tensorrt" in json.dumps(found["error"])
    assert statuses(ran)["report"] == "ran", "the rest of the line is finished all the same"


@pytest.mark.usefixtures("first")
def test_a_damaged_artefact_is_set_aside_named_and_made_again(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store, copy, symlinks=True)
    planned = document(kdpipe("plan", FLAGSHIP, *REDUCED, "--store", copy, "--json"))
    export = next(stage for stage in planned["stages"] if stage["name"] == "export")
    file = Path(export["path"]) / "student.onnx"
    file.parent.chmod(0o755)
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    ran = kdpipe("run", FLAGSHIP, *REDUCED, "--store", copy, "--json", "-v")
    assert ran.returncode == 0, ran.stderr
    found = statuses(ran)
    assert found["export"] == "ran"
    assert [name for name in STAGES if found[name] != "hit"] == ["export"], "its content came out the same"
    assert "export" in ran.stderr
    assert "damaged" in ran.stderr


def test_a_closed_pipe_ends_quietly(store: Path) -> None:
    command = f"{sys.executable} -m pipeline schema | head -1"
    finished = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, env=environment()
    )
    assert finished.stderr == ""
    assert os.linesep in finished.stdout
