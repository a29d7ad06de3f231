"""The command line as a user meets it: real processes, streams, exit codes and signals."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pipeline import cli
from pipeline.console.session import Session
from stages import STAGES
from tests.pipeline.command_line import PROFILE, PROFILE_TEXT, SMALL, call, document, environment

COMMANDS = (
    "run",
    "compare",
    "plan",
    "show",
    "schema",
    "doctor",
    "clean",
    "completion",
    *(stage.name for stage in STAGES),
)
HEAVY = {"torch", "numpy", "onnx", "onnxruntime", "timm", "pandas", "scipy", "sklearn"}


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
                    match = re.search(r"""kdpipe [^|>#)"]*""", example)
                    assert match is not None
                    words = shlex.split(match[0])
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
    def test_help_imports_only_click(self, home: Path, words: list[str]) -> None:
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
    def test_mistakes_have_a_hint(self, home: Path, words: list[str], what: str, hint: str) -> None:
        done = call(home, *words)
        assert (done.returncode, done.stdout) == (2, "")
        first, _, rest = done.stderr.partition("\n")
        assert first.startswith("error: ")
        assert what in first
        assert "\n\nhint: " in rest
        assert hint in rest
        assert "Traceback" not in done.stderr

    def test_mistakes_are_reported_in_json(self, home: Path) -> None:
        done = call(home, "run", PROFILE, "--json", "--untill", "train")
        report = document(done)
        assert report["command"] == "run"
        assert report["error"]["exit_code"] == done.returncode == 2
        assert {"what", "where", "why", "hint"} <= report["error"].keys()

    def test_all_faults_of_a_profile_are_reported(self, home: Path) -> None:
        (home / "bad.yaml").write_text(PROFILE_TEXT + "distil: {epochs: 3}\ntrain: {epochs: -1}\n")
        done = call(home, "run", "bad.yaml")
        assert done.returncode == 2
        assert "bad.yaml:5:1: " in done.stderr
        assert "bad.yaml:6:" in done.stderr
        report = document(call(home, "run", "bad.yaml", "--json"))
        assert [(fault["line"], fault["file"]) for fault in report["error"]["faults"]] == [
            (5, "bad.yaml"),
            (6, "bad.yaml"),
        ]
        assert report["profile"] == "bad.yaml"
        assert report["stages"] == []

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


class TestShow:
    def test_a_profile_with_every_default(self, home: Path) -> None:
        done = call(home, "show", PROFILE, "--set", "distill.epochs=7")
        assert done.returncode == 0
        assert "batch_size: 64" in done.stdout
        assert "epochs: 7" in done.stdout
        (home / "shown.yaml").write_text(done.stdout)
        assert call(home, "show", "shown.yaml", "--json").returncode == 0

    def test_in_json(self, home: Path) -> None:
        report = document(call(home, "show", PROFILE, "--json"))
        assert report["settings"]["train"]["epochs"] == 20
        assert report["files"] == [PROFILE]

    def test_the_schema(self, home: Path) -> None:
        report = json.loads(call(home, "schema").stdout)
        assert "distill" in report["properties"]


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
        before = sorted(home.glob(".kdpipe/artefacts/*/*"))
        call(home, "run", PROFILE, "--set", "seed=3", "--set", "train.epochs=9", program=SMALL)
        report = document(call(home, "clean", PROFILE, "--yes", "--json", program=SMALL))
        assert report["removed"] is True
        assert [item["stage"] for item in report["items"] if item["kind"] == "artefact"]
        assert sorted(home.glob(".kdpipe/artefacts/*/*")) == before
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
        ("line", "completions"),
        [
            ("kdpipe tr", ["plain,train"]),
            ("kdpipe run x --until dis", ["plain,distill"]),
            ("kdpipe run x --unt", ["plain,--until"]),
            ("kdpipe run ", ["plain,other.yml", "plain,profile.yaml"]),
            ("kdpipe run prof", ["plain,profile.yaml"]),
            ("kdpipe completion b", ["plain,bash"]),
        ],
    )
    def test_words_are_completed(self, home: Path, line: str, completions: list[str]) -> None:
        (home / "other.yml").write_text("")
        (home / "notes.txt").write_text("")
        words = line.split(" ")
        done = call(
            home,
            _KDPIPE_COMPLETE="bash_complete",
            COMP_WORDS="\n".join(words),
            COMP_CWORD=str(len(words) - 1),
        )
        assert done.stdout.split() == completions
