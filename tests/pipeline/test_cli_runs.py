"""Plans, runs and their ends, as a user meets them: streams, exit codes and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages import STAGES
from tests.pipeline.command_line import PROFILE, REAL, SMALL, call, document, environment


class TestPlan:
    def test_every_stage_is_stale_at_first(self, home: Path) -> None:
        done = call(home, "plan", PROFILE)
        assert done.returncode == 0
        lines = done.stdout.splitlines()
        assert lines[0].split() == ["stage", "status", "content", "or", "why", "estimate"]
        assert [line.split()[:2] for line in lines[1 : 1 + len(STAGES)]] == [
            [s.name, "stale"] for s in STAGES
        ]
        assert "not made yet" in lines[1]
        assert f"{len(STAGES)} of {len(STAGES)} stages have to run" in done.stdout

    def test_check_exits_for_ci(self, home: Path) -> None:
        done = call(home, "plan", PROFILE, "--check", "--json", "--until", "distill")
        assert done.returncode == 5
        report = document(done)
        assert [stage["name"] for stage in report["stages"]] == ["train", "distill"]
        assert "error" not in report
        assert "train" in done.stderr

    def test_reasons_name_what_changed(self, home: Path) -> None:
        assert call(home, "run", PROFILE, program=SMALL).returncode == 0
        assert call(home, "plan", PROFILE, "--check", program=SMALL).returncode == 0
        done = call(home, "plan", PROFILE, "--set", "seed=3", program=SMALL)
        train, evaluate = done.stdout.splitlines()[1:3]
        assert train.split()[:6] == ["train", "stale", "profile", "seed:", "0", "→"]
        assert train.split()[-1] == "s"
        assert evaluate.split()[:5] == ["evaluate", "stale", "input", "train", "is"]
        plain = call(
            home, "plan", PROFILE, "--set", "seed=3", program=SMALL, PYTHONUTF8="0", PYTHONIOENCODING="ascii"
        )
        assert "seed: 0 -> 3" in plain.stdout
        report = document(call(home, "plan", PROFILE, "--set", "seed=3", "--json", program=SMALL))
        assert report["stages"][0]["reasons"] == [{"kind": "profile", "key": "seed", "old": 0, "new": 3}]
        assert report["overrides"] == ["seed=3"]

    def test_a_plan_of_cached_stages_is_reported(self, home: Path) -> None:
        call(home, "run", PROFILE, program=SMALL)
        done = call(home, "plan", PROFILE, program=SMALL)
        assert "everything is cached" in done.stdout
        assert done.stdout.count("  cached  ") == 5

    @pytest.mark.parametrize("words", [["plan", PROFILE], ["show", PROFILE], ["clean", PROFILE]])
    def test_looking_leaves_no_trace(self, home: Path, words: list[str]) -> None:
        assert call(home, *words).returncode == 0
        assert [path.name for path in home.iterdir()] == [PROFILE]


class TestRun:
    def test_scorecard_bundle_and_report(self, home: Path) -> None:
        done = call(home, "run", PROFILE, program=SMALL)
        assert done.returncode == 0, done.stderr
        out = done.stdout
        assert "library says hello" not in out
        header, teacher, student = out.splitlines()[:3]
        for column in (
            "model",
            "target",
            "top-1",
            "agreement",
            "p50",
            "p90",
            "p99",
            "speed-up",
            "size",
            "memory",
        ):
            assert column in header
        assert "12.345 [12.345, 12.349]" in teacher
        for figure in (
            "97.41 [95.70, 98.50]",
            "98.15",
            "1.899 [1.899, 1.903]",
            "6.50x",
            "2.34 MB",
            "91.0 MB",
        ):
            assert figure in student
        assert "tensorrt-fp16: there is no GPU\n    hint: pip install 'kdpipe[tensorrt]'" in out
        assert "distillation gave +0.74 points [-0.10, +1.60]" in out
        assert "cannot tell" in out
        assert "student onnxruntime-int8 is faster than teacher onnxruntime-fp32: 0.154 [0.134, 0.174]" in out
        assert "cannot tell student openvino-fp32 from teacher onnxruntime-fp32: 1.010" in out
        assert "recommended" not in out, "only the stage gate decides what ships"
        assert "latency of a batch of 1 image on 1 thread" in out
        bundle, report = (line.split()[-1] for line in out.splitlines()[-2:])
        assert Path(bundle).name == "small.tar.zst"
        assert Path(report).name == "report.html"
        assert Path(bundle).is_file()
        assert Path(report).is_file()
        assert "ran" in done.stderr
        assert "trained in no time" in done.stderr

    def test_the_second_time_everything_is_cached(self, home: Path) -> None:
        first = call(home, "run", PROFILE, program=SMALL)
        second = call(home, "run", PROFILE, program=SMALL)
        assert second.returncode == 0
        assert second.stdout == first.stdout
        assert [line.split()[1:3] for line in second.stderr.splitlines()] == [
            [name, "cached"] for name in ("train", "evaluate", "measure", "package", "report")
        ]

    def test_the_document(self, home: Path) -> None:
        for status in ("ran", "hit"):
            done = call(home, "run", PROFILE, "--json", "-q", program=SMALL)
            report = document(done)
            assert report["profile"] == PROFILE
            assert report["store"] == str(home / ".kdpipe")
            assert [stage["name"] for stage in report["stages"]][:2] == ["train", "evaluate"]
            for stage in report["stages"]:
                assert stage["status"] == status
                assert len(stage["key"]) == len(stage["digest"]) == 64
                assert Path(stage["path"]).is_dir()
                assert (stage["seconds"] > 0) is (status == "ran")
            assert report["stages"][0]["metrics"]["val_top1"] == 98.5
        assert "cached" not in done.stderr

    def test_a_stage_shows_its_figures_and_its_place(self, home: Path) -> None:
        done = call(home, "train", PROFILE, program=SMALL)
        assert [line.split() for line in done.stdout.splitlines()[:4]] == [
            ["figure", "value"],
            ["val_top1", "98.5"],
            ["epochs", "20"],
            ["size_bytes", "1.43", "MB"],
        ]
        assert Path(done.stdout.splitlines()[-1].split()[-1]).joinpath("weights.txt").is_file()

    def test_evaluate_shows_its_table(self, home: Path) -> None:
        done = call(home, "evaluate", PROFILE, program=SMALL)
        lines = done.stdout.splitlines()
        assert [line.split("  ")[0] for line in lines[1:4]] == ["teacher", "student alone", "student"]
        assert "98.52 [97.52, 99.52]" in lines[1]
        assert "11.2 M" in lines[1]
        assert "540 test images" in done.stdout
        assert "cannot tell" in done.stdout

    def test_force_and_until(self, home: Path) -> None:
        call(home, "run", PROFILE, "--until", "evaluate", program=SMALL)
        done = call(home, "run", PROFILE, "--until", "evaluate", "--force", "train", "--json", program=SMALL)
        assert [(s["name"], s["status"]) for s in document(done)["stages"]] == [
            ("train", "ran"),
            ("evaluate", "hit"),
        ]

    def test_the_environment_names_the_store(self, home: Path) -> None:
        call(home, "run", PROFILE, program=SMALL, KDPIPE_STORE=str(home / "elsewhere"))
        assert (home / "elsewhere" / "artefacts").is_dir()
        assert not (home / ".kdpipe").exists()

    @pytest.mark.parametrize(("trouble", "code"), [("gate", 3), ("machine", 4), ("defect", 1)])
    def test_failures_have_their_codes(self, home: Path, trouble: str, code: int) -> None:
        done = call(home, "run", PROFILE, "--json", program=SMALL, SMALL_TROUBLE=trouble)
        report = document(done)
        assert done.returncode == report["error"]["exit_code"] == code
        assert [stage["status"] for stage in report["stages"]] == ["failed"] + ["skipped"] * 4
        assert "\nerror: " in done.stderr
        assert "Traceback" not in done.stderr
        text = call(home, "run", PROFILE, program=SMALL, SMALL_TROUBLE=trouble)
        assert (text.returncode, text.stdout) == (code, "")

    def test_quiet_and_silent(self, home: Path) -> None:
        quiet = call(home, "run", PROFILE, "-q", program=SMALL)
        assert "student  onnxruntime-int8" in quiet.stdout
        assert "ran" not in quiet.stderr
        silent = call(home, "-q", "run", PROFILE, "-q", program=SMALL)
        assert (silent.stdout, silent.stderr) == ("", "")

    def test_a_defect_of_ours_leaves_a_log(self, home: Path) -> None:
        done = call(home, "broken", program=SMALL)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("error: kdpipe failed unexpectedly: ZeroDivisionError: no such luck\n")
        (log,) = (home / ".kdpipe" / "logs").iterdir()
        assert str(log) in done.stderr
        assert "ZeroDivisionError: no such luck" in log.read_text()
        report = document(call(home, "broken", "--json", program=SMALL))
        assert report["error"]["exit_code"] == 1
        assert Path(report["error"]["log"]).is_file()
        assert call(home, "run", PROFILE, program=SMALL).returncode == 0


class TestEndings:
    def start(self, home: Path, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *SMALL, *words],
            cwd=home,
            env=environment(SMALL_TROUBLE="slow"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 60
        while not list((home / ".kdpipe" / "work").glob("*/checkpoint")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        return process

    @pytest.mark.parametrize(
        ("number", "code", "word"),
        [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
    )
    def test_a_signal_ends_the_run_and_keeps_checkpoints(
        self, home: Path, number: signal.Signals, code: int, word: str
    ) -> None:
        process = self.start(home, "run", PROFILE)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code
        assert out == ""
        assert "Traceback" not in err
        last = err.splitlines()[-1]
        assert last.startswith(f"{word}; ")
        assert "run the same command to go on" in last
        assert list((home / ".kdpipe" / "work").glob("*/checkpoint"))
        assert not list(home.glob(".kdpipe/artefacts/*/*"))

    def test_a_signal_leaves_a_document(self, home: Path) -> None:
        process = self.start(home, "run", PROFILE, "--json")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
        report = json.loads(out)
        assert report["error"]["exit_code"] == process.returncode == 143
        assert report["stages"][0]["name"] == "train"

    @pytest.mark.parametrize("words", [["show", PROFILE], ["schema"], ["plan", PROFILE], ["--help"]])
    def test_a_closed_pipe_ends_quietly(self, home: Path, words: list[str]) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [sys.executable, *REAL, *words],
            cwd=home,
            env=environment(),
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (0, "")
