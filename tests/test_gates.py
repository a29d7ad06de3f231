"""Gates through the command line, on a small line that is really trained, built and measured."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest

from tests.command import document, kdpipe, statuses, write_profile

SMALL: dict[str, Any] = {
    "name": "gated",
    "compute": {"device": "cpu", "precision": "fp32", "threads": 1},
    "data": {"name": "digits", "image_size": 16, "test": 0.3},
    "teacher": {"model": "test_efficientnet"},
    "student": {"model": "test_efficientnet"},
    "train": {"epochs": 2, "batch_size": 64, "learning_rate": 0.005},
    "distill": {"epochs": 2, "batch_size": 64, "learning_rate": 0.005, "methods": [{"name": "kd"}]},
    "export": {"parity_images": 16},
    "quantize": {"images": 32},
    "measure": {
        "warmup_s": 0.02,
        "duration_s": 0.1,
        "max_duration_s": 0.2,
        "min_samples": 44,
        "resamples": 200,
        "compare_s": 0.1,
    },
    "gates": [
        {"metric": "size_mb", "max": 5.0},
        {"metric": "latency_p90_ms", "target": "onnxruntime-int8", "max": 0.000001},
    ],
}
ABSURD = "gates=[{metric: accuracy, min: 100}]"
NEVER_SURE = "gates=[{metric: accuracy_drop, target: onnxruntime-fp32, max: 0}]"
"""A file that hardly differs from the float student: 0 lies inside the interval."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gated")
    write_profile(folder / "gated.yaml", SMALL)
    return folder


def call(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return kdpipe(*words, "--store", place / "store", cwd=place)


@pytest.fixture(scope="module")
def first(place: Path) -> subprocess.CompletedProcess[str]:
    return call(place, "run", "gated.yaml")


def artefact(place: Path, stage: str, *words: str) -> Path:
    planned = document(call(place, "plan", "gated.yaml", "--json", *words))
    return Path(next(one["path"] for one in planned["stages"] if one["name"] == stage))


def test_a_missed_gate_ends_the_run_with_3_after_all_else_is_done(
    first: subprocess.CompletedProcess[str], place: Path
) -> None:
    assert first.returncode == 3, first.stderr
    assert "1 gate was missed" in first.stderr
    assert "latency_p90_ms" in first.stderr
    assert "Traceback" not in first.stderr
    assert re.search(r"^missed +onnxruntime-int8 +latency_p90_ms b1 t1 at most 1e-06 ms", first.stdout, re.M)
    assert "gates: 2 passed, 1 missed" in first.stdout
    report = (artefact(place, "report") / "report.html").read_text(encoding="utf-8")
    assert report.count('<h2 id="gates">') == 1
    assert '<b class="bad">missed</b>' in report
    assert list(artefact(place, "package").glob("gated.tar.zst"))


@pytest.mark.usefixtures("first")
def test_bundle_report_terminal_and_pick_name_the_same_target(
    first: subprocess.CompletedProcess[str], place: Path
) -> None:
    picked = call(place, "pick", "gated.yaml", "--json")
    assert picked.returncode == 0, "a target passes, though another misses a gate"
    pick = document(picked)["pick"]
    assert pick["target"] == "onnxruntime-fp32"
    manifest = json.loads(
        (artefact(place, "package") / "bundle" / "manifest.json").read_text(encoding="utf-8")
    )
    summary = json.loads((artefact(place, "report") / "summary.json").read_text(encoding="utf-8"))
    assert manifest["default_target"] == summary["recommendation"]["target"] == pick["target"]
    assert "recommended: onnxruntime-fp32" in first.stdout
    card = (artefact(place, "package") / "bundle" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "**Ship `onnxruntime-fp32`**" in card
    page = (artefact(place, "report") / "report.html").read_text(encoding="utf-8")
    assert '<p>Ship <code class="good">onnxruntime-fp32</code>' in page
    assert pick["rejected"][0]["target"] == "onnxruntime-int8"
    assert pick["rejected"][0]["why"].startswith("misses a gate")
    words = call(place, "pick", "gated.yaml").stdout
    assert words.startswith("ship: onnxruntime-fp32: ")
    assert "Pareto front" in words


@pytest.mark.usefixtures("first")
def test_measure_recommends_nothing(place: Path) -> None:
    measured = call(place, "measure", "gated.yaml")
    assert measured.returncode == 0, measured.stderr
    assert "onnxruntime-int8" in measured.stdout
    assert "recommended" not in measured.stdout
    scorecard = json.loads((artefact(place, "measure") / "scorecard.json").read_text(encoding="utf-8"))
    assert "recommendation" not in scorecard
    metrics = document(call(place, "measure", "gated.yaml", "--json"))["stages"][-1]["metrics"]
    assert "recommended" not in metrics
    assert "onnxruntime-int8" in str(metrics["targets"])


@pytest.mark.usefixtures("first")
def test_gate_writes_junit_and_annotations_at_the_profile_s_line(place: Path) -> None:
    done = call(place, "gate", "gated.yaml", "--junit", "out/gates.xml", "--github")
    assert done.returncode == 3
    (annotation,) = [line for line in done.stdout.splitlines() if line.startswith("::")]
    lines = (place / "gated.yaml").read_text(encoding="utf-8").splitlines()
    line = next(number for number, text in enumerate(lines) if "latency_p90_ms" in text)  # its `{` is above
    assert annotation.startswith(f"::error file=gated.yaml,line={line},")
    suite = Xml.parse(place / "out" / "gates.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")
    found = document(call(place, "gate", "gated.yaml", "--json", "--github"))
    assert found["error"]["exit_code"] == 3
    assert (found["passed"], found["missed"], found["undecided"]) == (2, 1, 0)
    assert set(statuses(call(place, "gate", "gated.yaml", "--json")).values()) == {"hit"}


@pytest.mark.usefixtures("first")
def test_other_limits_judge_again_and_measure_nothing(place: Path) -> None:
    done = call(place, "gate", "gated.yaml", "--set", NEVER_SURE, "--json")
    assert done.returncode == 0, done.stderr
    assert document(done)["undecided"] == 1
    ran = [name for name, status in statuses(done).items() if status == "ran"]
    assert ran == ["gate"]


@pytest.mark.usefixtures("first")
def test_undecided_is_said_and_fails_only_when_strict(place: Path) -> None:
    words = ("gate", "gated.yaml", "--set", NEVER_SURE)
    lenient = call(place, *words)
    assert lenient.returncode == 0
    assert "undecided: onnxruntime-fp32: accuracy_drop against the student is" in lenient.stdout
    strict = call(place, *words, "--strict")
    assert strict.returncode == 3
    assert "1 gate was undecided, which --strict counts as missed" in strict.stderr


SLOWDOWN = "gates=[{metric: slowdown, target: onnxruntime-fp32, max: LIMIT}]"


@pytest.mark.usefixtures("first")
def test_a_build_is_timed_in_turns_against_an_earlier_bundle(place: Path) -> None:
    (packed,) = artefact(place, "package").glob("gated.tar.zst")
    earlier = place / "earlier.tar.zst"
    earlier.write_bytes(packed.read_bytes())
    words = ("gate", "gated.yaml", "--set", f"measure.reference={earlier}", "--json")
    # The same files: far from half as long, and far from twice as long.
    slower = call(place, *words, "--set", SLOWDOWN.replace("LIMIT", "-50"))
    assert slower.returncode == 3, slower.stderr
    (judged,) = document(slower)["judgements"]
    assert judged["status"] == "missed"
    assert judged["interval"][0] <= judged["value"] <= judged["interval"][1]
    assert "slowdown is" in judged["said"]
    assert "the limit is at most -50 %" in judged["said"]
    alike = call(place, *words, "--set", SLOWDOWN.replace("LIMIT", "100"))
    assert alike.returncode == 0, alike.stderr
    assert document(alike)["judgements"][0]["status"] == "passed"
    assert statuses(alike)["measure"] == "hit"
    moved = place / "moved.tar.zst"
    earlier.rename(moved)
    elsewhere = [word.replace(str(earlier), str(moved)) for word in words]
    again = call(place, *elsewhere, "--set", SLOWDOWN.replace("LIMIT", "100"))
    assert statuses(again)["measure"] == "hit", "what counts is the bundle's content, not its place"
    card = (Path(place) / "store").rglob("scorecard.json")
    assert not any(str(place) in one.read_text(encoding="utf-8") for one in card)


@pytest.mark.usefixtures("first")
def test_a_reference_that_is_no_bundle_is_refused_and_a_gate_without_one_is_told(place: Path) -> None:
    (place / "other.tar.zst").write_bytes(b"no archive")
    reference = f"measure.reference={place / 'other.tar.zst'}"
    done = call(place, "gate", "gated.yaml", "--set", reference)
    assert done.returncode == 1
    assert "The bundle to compare with cannot be used" in done.stderr
    assert "Traceback" not in done.stderr
    without = call(place, "gate", "gated.yaml", "--set", SLOWDOWN.replace("LIMIT", "5"))
    assert without.returncode == 2
    assert "set measure.reference" in without.stderr
    absent = call(place, "gate", "gated.yaml", "--set", "measure.reference=nowhere.tar.zst")
    assert absent.returncode == 2
    assert "nowhere.tar.zst" in absent.stderr


@pytest.mark.usefixtures("first")
def test_a_profile_without_gates_says_so_and_passes(place: Path) -> None:
    done = call(
        place, "gate", "gated.yaml", "--set", "gates=[]", "--strict", "--github", "--junit", "none.xml"
    )
    assert done.returncode == 0, done.stderr
    assert "the profile has no gates" in done.stdout
    assert "::" not in done.stdout
    assert Xml.parse(place / "none.xml").getroot()[0].get("tests") == "0"


@pytest.mark.usefixtures("first")
def test_no_target_to_ship_ends_with_3(place: Path) -> None:
    done = call(place, "pick", "gated.yaml", "--set", ABSURD, "--json")
    assert done.returncode == 3
    assert document(done)["pick"]["target"] is None
    assert "misses a gate" in document(done)["error"]["why"]


@pytest.mark.usefixtures("first")
def test_a_junit_file_that_cannot_be_written_is_told(place: Path) -> None:
    done = call(place, "gate", "gated.yaml", "--junit", "gated.yaml/gates.xml")
    assert done.returncode == 2
    assert "JUnit file cannot be written" in done.stderr


@pytest.mark.usefixtures("first")
def test_cached_gates_load_nothing_heavy(place: Path) -> None:
    done = kdpipe("gate", "gated.yaml", "--store", place / "store", cwd=place, python=("-X", "importtime"))
    imported = set(re.findall(r"\|\s+([A-Za-z0-9_.]+)$", done.stderr, re.MULTILINE))
    assert "pipeline.console.gates_text" in imported
    assert not imported & {"torch", "numpy", "scipy", "pydantic", "onnx"}
