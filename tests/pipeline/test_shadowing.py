"""A user's own `stages` or `pipeline` that comes first on Python's path is reported, not imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.pipeline.command_line import ROOT, call, environment
from tests.traps import lay_traps

COMMAND = ("-c", "import sys; from kdpipe.__main__ import main; sys.argv[0] = 'kdpipe'; sys.exit(main())")
"""What the installed command `kdpipe` does."""


def _start(
    cwd: Path, *words: str, program: Sequence[str] = ("-P", *COMMAND), path: Sequence[Path] = ()
) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(map(str, (*path, ROOT)))
    return call(cwd, *words, program=program, PYTHONPATH=paths)


@pytest.mark.parametrize("name", ["stages/__init__.py", "stages.py", "pipeline/__init__.py", "pipeline.py"])
def test_a_package_on_pythonpath_that_hides_ours_is_a_usage_error(name: str, tmp_path: Path) -> None:
    users = lay_traps(tmp_path / "users", name)
    done = _start(tmp_path, "show", "resnet_to_mobilenet", "--json", path=[users])
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    error = json.loads(done.stdout)["error"]
    package = name.partition("/")[0].removesuffix(".py")
    assert error["what"] == f"another Python package named {package} hides kdpipe's own"
    assert error["where"] == str(users / name)
    assert str(ROOT / package) in error["why"]
    assert f"remove {users} from PYTHONPATH" in error["hint"]
    for part in (error["what"], error["where"], error["why"], error["hint"]):
        assert part in done.stderr.replace("\n", " ")


@pytest.mark.parametrize("program", ["pipeline", "kdpipe"])
def test_a_package_in_the_working_folder_that_hides_ours_is_a_usage_error(
    program: str, tmp_path: Path
) -> None:
    work = lay_traps(tmp_path / "work", "stages/__init__.py")
    done = _start(work, "--version", program=("-m", program))
    assert done.returncode == 2
    assert str(work / "stages" / "__init__.py") in done.stderr
    assert "python -P -m pipeline" in done.stderr
    assert "Traceback" not in done.stderr
    for suggested in (("-P", "-m", "pipeline"), ("-P", *COMMAND)):
        done = _start(work, "--version", program=suggested)
        assert done.returncode == 0, done.stderr


def test_another_installed_package_that_hides_ours_is_a_usage_error(tmp_path: Path) -> None:
    users = lay_traps(tmp_path / "users", "stages/__init__.py")
    program = f"import sys; sys.path.insert(0, {str(users)!r}); {COMMAND[1]}"
    done = _start(tmp_path, "--version", program=("-P", "-c", program))
    assert done.returncode == 2
    assert f"take {users} off Python's import path" in done.stderr


def test_folders_that_hide_nothing_are_no_fault(tmp_path: Path) -> None:
    """A folder without `__init__.py` comes after every package; what comes after ours hides nothing."""
    work = tmp_path / "work"
    (work / "stages").mkdir(parents=True)
    done = _start(work, "--version", program=("-m", "pipeline"))
    assert done.returncode == 0, done.stderr
    later = lay_traps(tmp_path / "later", "stages/__init__.py", "pipeline.py")
    done = call(work, "--version", program=("-m", "kdpipe"), PYTHONPATH=f"{ROOT}{os.pathsep}{later}")
    assert done.returncode == 0, done.stderr


def test_the_command_is_as_light_as_its_help(tmp_path: Path) -> None:
    lines = [
        "import sys",
        "bare = {name.partition('.')[0] for name in sys.modules}",
        "from kdpipe.__main__ import main",
        "sys.argv = ['kdpipe', '--help']",
        "code = main()",
        "names = {name.partition('.')[0] for name in sys.modules} - bare - set(sys.stdlib_module_names)",
        "print(code, *sorted(names), file=sys.stderr)",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.split() == ["0", "click", "kdpipe", "pipeline", "stages"]
