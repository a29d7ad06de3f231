"""The command line as a user meets it: real processes, streams, exit codes and signals."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pipeline import cli
from pipeline.session import Session
from stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
REAL = ("-m", "pipeline")
SMALL = ("-m", "tests.pipeline.smallhouse")
PROFILE = "profile.yaml"
PROFILE_TEXT = """\
name: small
data: {name: digits}
teacher: {model: resnet18}
student: {model: mobilenetv3_small_050}
"""
COMMANDS = (
    "run",
    "plan",
    "show",
    "schema",
    "doctor",
    "clean",
    "completion",
    *(stage.name for stage in STAGES),
)
HEAVY = {"torch", "numpy", "onnx", "onnxruntime", "timm", "pandas", "scipy", "sklearn"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / PROFILE).write_text(PROFILE_TEXT)
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    ours = ("KDPIPE_", "NO_COLOR", "FORCE_COLOR", "SMALL_", "PYTHONIOENCODING", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", **more}


def call(
    home: Path, *words: str, program: Sequence[str] = REAL, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *program, *words],
        cwd=home,
        env=environment(**variables),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["schema_version"] == 1
    return found


class TestHelp:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_has_examples_and_exit_codes(self, name: str) -> None:
        done = CliRunner().invoke(cli.group, [name, "--help"], obj=Session(), prog_name="kdpipe")
        assert done.exit_code == 0, done.output
        first, _, rest = done.output.partition("\n\nUsage: kdpipe ")
        assert " ".join(first.split("\n\n")[0].split()).count(". ") == 0
        assert first.endswith(".")
        examples = rest.split("\nExamples:\n")[1].split("\n\n")[0].splitlines()
        assert len(examples) == 3
        assert "\nExit codes:\n  0 " in rest
        assert "\nGlobal options:\n  -q, --quiet" in rest

    def test_the_group_lists_every_command(self, home: Path) -> None:
        done = call(home, "--help")
        assert done.returncode == 0
        for name in COMMANDS:
            assert f"\n  {name} " in done.stdout
        assert "KDPIPE_STORE" in done.stdout
        assert "143  terminated" in done.stdout

    def test_without_a_command_help_goes_to_standard_error(self, home: Path) -> None:
        done = call(home)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Usage: kdpipe" in done.stderr

    def test_version(self, home: Path) -> None:
        assert call(home, "--version").stdout.startswith("kdpipe ")

    def test_examples_are_command_lines_that_parse(self) -> None:
        with click.Context(cli.group) as ctx:
            for name in COMMANDS:
                command: Any = cli.group.get_command(ctx, name)
                for example in command.examples:
                    found = re.search(r"""kdpipe [^|>#)"]*""", example)
                    assert found is not None
                    words = shlex.split(found[0])
                    assert words[:2] == ["kdpipe", name]
                    command.make_context(name, words[2:], obj=Session())


class TestLightness:
    """Modules are looked up in the process itself, after the command has run."""

    def modules(self, home: Path, *words: str, program: str = "pipeline.cli") -> set[str]:
        lines = [
            "import json, sys, stages",
            "from tests.pipeline import smallhouse" if program == "small" else "",
            "stages.STAGES = smallhouse.STAGES" if program == "small" else "",
            "from pipeline.cli import main",
            f"code = main({list(words)!r})",
            "names = sorted({name.partition('.')[0] for name in sys.modules})",
            "print(json.dumps([code, names]), file=sys.stderr)",
        ]
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)],
            cwd=home,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        code, names = json.loads(done.stderr.splitlines()[-1])
        assert code == 0, done.stderr
        return set(names)

    @pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["train", "--help"], ["--version"]])
    def test_help_imports_click_alone(self, home: Path, words: list[str]) -> None:
        bare = subprocess.run(
            [sys.executable, "-c", "import sys; print(*{name.partition('.')[0] for name in sys.modules})"],
            cwd=home,
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        more = self.modules(home, *words) - set(bare) - set(sys.stdlib_module_names) - {"json"}
        assert more == {"click", "pipeline", "stages"}

    def test_plan_imports_nothing_heavy(self, home: Path) -> None:
        assert not self.modules(home, "plan", PROFILE) & HEAVY

    def test_a_profile_that_a_run_remembered_needs_neither_pydantic_nor_yaml(self, home: Path) -> None:
        assert "pydantic" in self.modules(home, "plan", PROFILE)
        self.modules(home, "run", PROFILE, program="small")
        assert not self.modules(home, "plan", PROFILE) & {"pydantic", "yaml", *HEAVY}

    def test_a_cached_run_imports_nothing_heavy(self, home: Path) -> None:
        assert "numpy" in self.modules(home, "run", PROFILE, program="small")
        assert not self.modules(home, "run", PROFILE, program="small") & {"pydantic", "yaml", *HEAVY}


class TestUsage:
    @pytest.mark.parametrize(
        ("words", "what", "hint"),
        [
            (["rum", PROFILE], "no command 'rum'", "did you mean run"),
            (["run", PROFILE, "--untill", "train"], "no option --untill", "did you mean --until?"),
            (["run", PROFILE, "--until", "trian"], "no stage 'trian'", "did you mean train?"),
            (["run", PROFILE, "--force", "mesure"], "no stage 'mesure'", "did you mean measure?"),
            (["run"], "missing argument 'PROFILE'", "kdpipe run --help"),
            (["run", "absent.yaml"], "absent.yaml", ""),
            ([PROFILE], "no command", f"kdpipe run {PROFILE}"),
            (["--color", "blue", "plan", PROFILE], "blue", "kdpipe --help"),
            (["completion", "csh"], "csh", "kdpipe completion --help"),
        ],
    )
    def test_mistakes_are_told_with_a_hint(self, home: Path, words: list[str], what: str, hint: str) -> None:
        done = call(home, *words)
        assert (done.returncode, done.stdout) == (2, "")
        first, _, rest = done.stderr.partition("\n")
        assert first.startswith("error: ")
        assert what in first
        assert "\n\nhint: " in rest
        assert hint in rest
        assert "Traceback" not in done.stderr

    def test_mistakes_are_told_in_json(self, home: Path) -> None:
        done = call(home, "run", PROFILE, "--json", "--untill", "train")
        found = document(done)
        assert found["command"] == "run"
        assert found["error"]["exit_code"] == done.returncode == 2
        assert {"what", "where", "why", "mend"} <= found["error"].keys()

    def test_all_faults_of_a_profile_are_told(self, home: Path) -> None:
        (home / "bad.yaml").write_text(PROFILE_TEXT + "distil: {epochs: 3}\ntrain: {epochs: -1}\n")
        done = call(home, "run", "bad.yaml")
        assert done.returncode == 2
        assert "bad.yaml:5:1: " in done.stderr
        assert "bad.yaml:6:" in done.stderr
        found = document(call(home, "run", "bad.yaml", "--json"))
        assert [(fault["line"], fault["file"]) for fault in found["error"]["faults"]] == [
            (5, "bad.yaml"),
            (6, "bad.yaml"),
        ]
        assert found["profile"] == "bad.yaml"
        assert found["stages"] == []

    def test_a_traceback_is_shown_when_asked_for(self, home: Path) -> None:
        done = call(home, "run", "absent.yaml", "--traceback")
        assert done.returncode == 2
        assert "Traceback" in done.stderr
        assert "\nerror: " in done.stderr

    def test_an_unknown_log_level_is_refused(self, home: Path) -> None:
        done = call(home, "plan", PROFILE, KDPIPE_LOG="loud")
        assert done.returncode == 2
        assert "KDPIPE_LOG" in done.stderr

    @pytest.mark.parametrize("words", [["--color", "always", "run", "x"], ["run", "x", "--color=always"]])
    def test_global_options_stand_before_or_after(self, home: Path, words: list[str]) -> None:
        assert "\x1b[31merror:\x1b[0m" in call(home, *words).stderr

    def test_a_store_that_is_none_is_refused(self, home: Path) -> None:
        (home / "file").write_text("")
        done = call(home, "plan", PROFILE, "--store", "file")
        assert done.returncode == 2
        assert "file" in done.stderr


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

    def test_check_tells_ci(self, home: Path) -> None:
        done = call(home, "plan", PROFILE, "--check", "--json", "--until", "distill")
        assert done.returncode == 5
        found = document(done)
        assert [stage["name"] for stage in found["stages"]] == ["train", "distill"]
        assert "error" not in found
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
        found = document(call(home, "plan", PROFILE, "--set", "seed=3", "--json", program=SMALL))
        assert found["stages"][0]["reasons"] == [{"kind": "profile", "key": "seed", "old": 0, "new": 3}]
        assert found["overrides"] == ["seed=3"]

    def test_a_plan_of_cached_stages_says_so(self, home: Path) -> None:
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
        assert "recommended: onnxruntime-int8: lowest p50" in out
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
            found = document(done)
            assert found["profile"] == PROFILE
            assert found["store"] == str(home / ".kdpipe")
            assert [stage["name"] for stage in found["stages"]][:2] == ["train", "evaluate"]
            for stage in found["stages"]:
                assert stage["status"] == status
                assert len(stage["key"]) == len(stage["digest"]) == 64
                assert Path(stage["path"]).is_dir()
                assert (stage["seconds"] > 0) is (status == "ran")
            assert found["stages"][0]["metrics"]["val_top1"] == 98.5
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
        found = document(done)
        assert done.returncode == found["error"]["exit_code"] == code
        assert [stage["status"] for stage in found["stages"]] == ["failed"] + ["skipped"] * 4
        assert "\nerror: " in done.stderr
        assert "Traceback" not in done.stderr
        text = call(home, "run", PROFILE, program=SMALL, SMALL_TROUBLE=trouble)
        assert (text.returncode, text.stdout) == (code, "")

    def test_quiet_and_silent(self, home: Path) -> None:
        quiet = call(home, "run", PROFILE, "-q", program=SMALL)
        assert "recommended" in quiet.stdout
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
        found = document(call(home, "broken", "--json", program=SMALL))
        assert found["error"]["exit_code"] == 1
        assert Path(found["error"]["log"]).is_file()
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
        found = json.loads(out)
        assert found["error"]["exit_code"] == process.returncode == 143
        assert found["stages"][0]["name"] == "train"

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


class TestShow:
    def test_a_profile_with_every_default(self, home: Path) -> None:
        done = call(home, "show", PROFILE, "--set", "distill.epochs=7")
        assert done.returncode == 0
        assert "batch_size: 64" in done.stdout
        assert "epochs: 7" in done.stdout
        (home / "shown.yaml").write_text(done.stdout)
        assert call(home, "show", "shown.yaml", "--json").returncode == 0

    def test_in_json(self, home: Path) -> None:
        found = document(call(home, "show", PROFILE, "--json"))
        assert found["settings"]["train"]["epochs"] == 20
        assert found["files"] == [PROFILE]

    def test_the_schema(self, home: Path) -> None:
        found = json.loads(call(home, "schema").stdout)
        assert "distill" in found["properties"]


class TestClean:
    def test_nothing_goes_without_yes(self, home: Path) -> None:
        call(home, "run", PROFILE, program=SMALL)
        call(home, "run", PROFILE, "--set", "seed=3", program=SMALL)
        there = sorted(home.glob(".kdpipe/artefacts/*/*"))
        for words in (["--all"], ["--all", "--dry-run", "--yes"], [PROFILE]):
            done = call(home, "clean", *words, program=SMALL)
            assert done.returncode == 0
            assert "would remove" in done.stdout
            assert sorted(home.glob(".kdpipe/artefacts/*/*")) == there

    def test_what_the_profiles_do_not_need_goes(self, home: Path) -> None:
        call(home, "run", PROFILE, program=SMALL)
        kept = sorted(home.glob(".kdpipe/artefacts/*/*"))
        call(home, "run", PROFILE, "--set", "seed=3", "--set", "train.epochs=9", program=SMALL)
        found = document(call(home, "clean", PROFILE, "--yes", "--json", program=SMALL))
        assert found["removed"] is True
        assert [item["stage"] for item in found["items"] if item["kind"] == "artefact"]
        assert sorted(home.glob(".kdpipe/artefacts/*/*")) == kept
        assert call(home, "plan", PROFILE, "--check", program=SMALL).returncode == 0

    def test_a_stage_goes(self, home: Path) -> None:
        call(home, "run", PROFILE, program=SMALL)
        assert call(home, "clean", "--stage", "measure", "--yes", program=SMALL).returncode == 0
        assert not list(home.glob(".kdpipe/artefacts/measure/*"))
        assert list(home.glob(".kdpipe/artefacts/train/*"))

    def test_all_and_something_contradict_each_other(self, home: Path) -> None:
        assert call(home, "clean", "--all", PROFILE).returncode == 2


class TestCompletion:
    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_a_script(self, home: Path, shell: str) -> None:
        done = call(home, "completion", shell)
        assert done.returncode == 0
        assert "_KDPIPE_COMPLETE" in done.stdout

    @pytest.mark.parametrize(
        ("line", "found"),
        [
            ("kdpipe tr", ["plain,train"]),
            ("kdpipe run x --until dis", ["plain,distill"]),
            ("kdpipe run x --unt", ["plain,--until"]),
            ("kdpipe run ", ["plain,other.yml", "plain,profile.yaml"]),
            ("kdpipe run prof", ["plain,profile.yaml"]),
            ("kdpipe completion b", ["plain,bash"]),
        ],
    )
    def test_words_are_completed(self, home: Path, line: str, found: list[str]) -> None:
        (home / "other.yml").write_text("")
        (home / "notes.txt").write_text("")
        words = line.split(" ")
        done = call(
            home,
            _KDPIPE_COMPLETE="bash_complete",
            COMP_WORDS="\n".join(words),
            COMP_CWORD=str(len(words) - 1),
        )
        assert done.stdout.split() == found
