"""Child processes import kdpipe and the user's packages, and nothing from the working folder."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.child_process import environment, last_line, python_code, python_command, safe_path
from pipeline.comparing.parallel_commands import CommandLine, run_command_lines
from tests.command import ROOT, STARTER, kdpipe, statuses, write_profile
from tests.traps import lay_traps

MEASURE: dict[str, Any] = {
    "batch_sizes": [1],
    "threads": [1],
    "warmup_s": 0.02,
    "duration_s": 0.1,
    "max_duration_s": 0.3,
    "min_samples": 20,
    "resamples": 200,
    "compare_s": 0.1,
    "compare_rounds": 4,
}


def test_a_run_imports_nothing_from_the_working_folder(tmp_path: Path) -> None:
    profile = {
        **STARTER,
        "compute": {"device": "cpu", "precision": "fp32", "threads": 1},
        "export": {"parity_images": 8},
        "targets": ["onnxruntime-fp32"],
        "measure": MEASURE,
    }
    file = write_profile(tmp_path / "tiny.yaml", profile)
    done = kdpipe(
        "run",
        file,
        "--until",
        "measure",
        "--json",
        "--store",
        tmp_path / "store",
        python=("-P",),
        cwd=lay_traps(tmp_path / "work"),
    )
    assert done.returncode == 0, done.stderr
    assert statuses(done)["measure"] == "ran"


def test_training_processes_import_nothing_from_the_working_folder(tmp_path: Path) -> None:
    profile = {**STARTER, "compute": {"device": "cpu", "precision": "fp32", "threads": 1, "devices": 2}}
    file = write_profile(tmp_path / "tiny.yaml", profile)
    program = (
        f"import sys; sys.path[:] = [{str(ROOT)!r}, *filter(None, sys.path)]\n"
        "from pipeline.cli import main\n"
        "if __name__ == '__main__': sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "train", str(file), "--json", "--store", str(tmp_path / "store")],
        cwd=lay_traps(tmp_path / "work"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert statuses(done)["train"] == "ran"


def test_jobs_import_nothing_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lay_traps(tmp_path / "work"))
    codes: list[tuple[int, dict[str, Any]]] = []
    command_lines = [CommandLine("show", ("show", "resnet_to_mobilenet", "--json"))]
    run_command_lines(
        command_lines, 1, [], tmp_path, lambda _line, code, document, seconds: codes.append((code, document))
    )
    assert [code for code, _ in codes] == [0], codes


def test_doctor_imports_nothing_from_the_working_folder(tmp_path: Path) -> None:
    done = kdpipe("doctor", "--json", python=("-P",), cwd=lay_traps(tmp_path / "work"))
    report = json.loads(done.stdout)
    assert "of the working folder" not in done.stdout
    assert all(stage["can"] for stage in report["stages"])


def _seen(command: list[str], cwd: Path) -> Any:
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("has_safe_path", [True, False])
def test_a_module_is_started_with_its_arguments(
    has_safe_path: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the way in which it is started by Python 3.10, as on some devices."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "shown.py").write_text(
        "import json, sys\nprint(json.dumps({'name': __name__, 'words': sys.argv[1:]}))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(packages))
    command = python_command("shown", "a", "-b", has_safe_path=has_safe_path)
    seen = _seen(command, lay_traps(tmp_path / "work"))
    assert seen == {"name": "__main__", "words": ["a", "-b"]}


def test_the_users_folders_come_after_kdpipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = lay_traps(tmp_path / "users", "stages/__init__.py", "pipeline.py")
    (users / "own.py").write_text("NAME = 'own'\n")
    added = tmp_path / "added"
    added.mkdir()
    (added / "notebook.py").write_text("NAME = 'notebook'\n")
    work = lay_traps(tmp_path / "work")
    monkeypatch.chdir(work)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(users)]))
    monkeypatch.syspath_prepend(str(added))
    monkeypatch.syspath_prepend(str(work))  # as `python -m` does
    monkeypatch.syspath_prepend("")  # as an interactive Python does
    code = (
        "import json, own, notebook, stages, pipeline\n"
        "print(json.dumps([stages.__file__, pipeline.__file__]))"
    )
    files = _seen(python_code(code), work)
    assert files == [str(ROOT / name / "__init__.py") for name in ("stages", "pipeline")]


def test_installed_packages_do_not_come_before_pythons_own(tmp_path: Path) -> None:
    """Where kdpipe is installed its own folder is that of all packages, and a `json.py` may be there."""
    site = tmp_path / "site"
    (site / "pipeline").mkdir(parents=True)
    (site / "pipeline" / "__init__.py").touch()
    own = (ROOT / "pipeline" / "child_process.py").read_text(encoding="utf-8")
    (site / "pipeline" / "child_process.py").write_text(own, encoding="utf-8")
    code = (
        "import os, site, sys\n"
        f"site.getsitepackages = lambda: [{str(site)!r}]\n"
        f"sys.path.insert(sys.path.index(os.path.dirname(os.__file__)) + 1, {str(site)!r})\n"
        "from pipeline.child_process import environment\n"
        "entries = environment()['PYTHONPATH'].split(os.pathsep)\n"
        f"assert entries.index({str(site)!r}) > entries.index(os.path.dirname(os.__file__)), entries"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_working_folder_that_was_removed_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert str(ROOT) in environment()["PYTHONPATH"]


@pytest.mark.parametrize("before", [None, "0"])
def test_the_environment_is_as_before_afterwards(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if before is None:
        monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONSAFEPATH", before)
    with safe_path():
        assert os.environ["PYTHONSAFEPATH"] == "1"
    assert os.environ.get("PYTHONSAFEPATH") == before


TWO_LINES = "raise ValueError('the shapes differ:\\n    (1, 3)\\nand (1, 4)')"
NOTICE = "import atexit, sys; atexit.register(sys.stderr.write, 'log closed\\n')"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (TWO_LINES, "ValueError: the shapes differ:"),
        (f"{NOTICE}\n{TWO_LINES}", "ValueError: the shapes differ:"),
        (
            f"try:\n    {TWO_LINES}\nexcept ValueError as error:\n    raise KeyError(1) from error",
            "KeyError: 1",
        ),
        ("def deep():\n    deep()\ndeep()", "RecursionError: maximum recursion depth exceeded"),
        ("1 +", "SyntaxError: invalid syntax"),
        (NOTICE, "log closed"),
        ("import sys; sys.stderr.write('first\\n\\n  second  \\n\\n')", "second"),
        ("import sys; sys.stderr.write(' \\n')", ""),
        ("", ""),
    ],
)
def test_the_last_line_of_a_process_names_its_exception(code: str, expected: str) -> None:
    done = subprocess.run(python_code(code), capture_output=True, text=True, check=False, timeout=60)
    assert last_line(done.stderr) == expected


def test_a_command_without_a_document_is_reported_with_its_exception(tmp_path: Path) -> None:
    documents: list[dict[str, Any]] = []
    run_command_lines(
        [CommandLine("broken", ("plan", "any.yaml", "--json"), profile=_Unreadable())],  # type: ignore[arg-type]
        1,
        [],
        tmp_path,
        lambda _job, _code, document, _seconds: documents.append(document),
    )
    assert documents[0]["error"]["what"] == "RuntimeError: this profile cannot be read:"


class _Unreadable:
    """Pickles as a call that raises an error of two lines in the process that reads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise RuntimeError('this profile cannot be read:\\nno reason')",)


def _python_calls(tree: ast.AST) -> list[int]:
    """Return the lines of all command lines that begin with `sys.executable` and go on with `-m` or `-c`."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.List | ast.Tuple)
        and node.elts
        and ast.unparse(node.elts[0]) == "sys.executable"
        and {"'-m'", "'-c'"} & {ast.unparse(word) for word in node.elts}
    ]


@pytest.mark.long
def test_python_is_started_in_one_place() -> None:
    files = [file for folder in ("pipeline", "stages") for file in (ROOT / folder).rglob("*.py")]
    places = {
        file.relative_to(ROOT).as_posix()
        for file in files
        if _python_calls(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert places == {"pipeline/child_process.py"}
