"""What doctor finds out, on this very machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import doctor, machine
from pipeline.commands.doctor import doctor_text
from pipeline.errors import UsageError
from pipeline.store.file_system import try_file_system
from pipeline.store.store import Store
from stages import REPORTED_DISTRIBUTIONS, STAGES, TRIAL

ROOT = Path(__file__).resolve().parents[2]


def trial(*words: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", TRIAL, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


class TestFacts:
    def test_versions_are_reported_without_an_import(self) -> None:
        versions = doctor.distribution_versions()
        assert versions["torch"] is not None
        assert versions["torch"][0].isdigit()
        assert set(versions) == set(REPORTED_DISTRIBUTIONS)

    def test_two_packages_of_one_folder_are_a_warning(self) -> None:
        assert doctor.version_conflicts({"onnxruntime": "1.31.1", "onnxruntime-gpu": None}) == []
        assert doctor.version_conflicts({"onnxruntime": None, "onnxruntime-gpu": "1.31.1"}) == []
        (warning,) = doctor.version_conflicts({"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"})
        assert "pip uninstall --yes onnxruntime onnxruntime-gpu" in warning

    def test_the_processor(self) -> None:
        cpu = machine.cpu()
        assert cpu["model"]
        assert 0 < cpu["cores_usable"] <= cpu["cores"]

    def test_affinity_counts(self) -> None:
        lines = [
            "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})",
            "from pipeline import machine; print(machine.usable_cpu())",
        ]
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert float(done.stdout) <= 1.0

    def test_memory(self) -> None:
        memory = machine.memory()
        assert memory["total_bytes"] > memory["available_bytes"] > 0

    def test_the_clock(self) -> None:
        clock = machine.clock()
        assert clock["resolution_ns"] > 0
        assert 0 < clock["smallest_step_ns"] < 1e6


class TestFileSystem:
    def test_locks_and_renames_are_tried_and_nothing_is_left(self, tmp_path: Path) -> None:
        facts = try_file_system(tmp_path / "deep" / "store")
        assert facts["locks"] == facts["rename"] == {"works": True, "why_not": None}
        assert facts["free_bytes"] > 0
        assert not facts["exists"]
        assert list(tmp_path.iterdir()) == []

    def test_a_store_that_is_there_stays(self, tmp_path: Path) -> None:
        store = Store(tmp_path / "store")
        store.prepare()
        store.write_log("train", "kept")
        store.release()
        assert try_file_system(store.root)["exists"]
        assert len(list((store.root / "logs").iterdir())) == 1
        left = {path.name for path in store.root.iterdir()}
        assert left - {"digests.sqlite"} == {"logs", "store.json"}

    def test_a_place_that_cannot_be_written_is_reported(self) -> None:
        facts = try_file_system(Path("/proc/kdpipe"))
        assert not facts["locks"]["works"]
        assert "/proc/kdpipe" in facts["locks"]["why_not"]

    def test_a_folder_that_is_no_store_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "artefacts").mkdir()
        with pytest.raises(UsageError):
            try_file_system(tmp_path)


class TestTrials:
    def test_runtimes_and_their_abilities(self) -> None:
        (line,) = trial("runtimes")
        assert {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"} <= set(line["runtimes"])
        (facts,) = trial("runtime", "onnxruntime")
        assert facts["can_build"]
        assert facts["can_run"]
        assert facts["targets"] == ["onnxruntime-fp32", "onnxruntime-int8"]

    def test_a_trial_that_dies_is_an_answer(self) -> None:
        lines, ending = doctor.run_trial("runtime", "no_such_runtime")
        assert lines == []
        assert "no_such_runtime" in ending


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "doctor", "--json"],
        cwd=tmp_path_factory.mktemp("doctor"),
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.mark.slow
class TestWhole:
    def test_every_stage_can_run_where_the_tests_run(self, whole: subprocess.CompletedProcess[str]) -> None:
        report = json.loads(whole.stdout)
        assert report["problems"] == []
        assert (whole.returncode, report["core"]) == (0, True)
        assert [entry["name"] for entry in report["stages"]] == [stage.name for stage in STAGES]
        targets = {entry["target"]: entry for entry in report["targets"]}
        assert targets["onnxruntime-fp32"]["can_build"]
        assert all(entry["can_run"] or entry["why_not"] for entry in targets.values())
        assert report["build"]["max_difference"] < 1e-4
        assert "exporting a small network" in whole.stderr

    def test_text(self, whole: subprocess.CompletedProcess[str]) -> None:
        facts = json.loads(whole.stdout)
        text = doctor_text(facts)
        assert "every stage can run here" in text
        assert "onnxruntime-fp32" in text
        facts["stages"][0].update(can=False, why_not="ImportError: no torch")
        facts.update(problems=doctor.core_problems(facts), core=False)
        assert "cannot all run here:\n  stage train: ImportError: no torch" in doctor_text(facts)
