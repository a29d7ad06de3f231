"""Build the command and the environment of every Python process that kdpipe starts.

A child process must import the same kdpipe and the same packages as its parent, and nothing from the working
folder, where a user may have an own `stages/`, `pipeline.py` or `json.py`. Standard library only, and Python
3.10 is enough: this module is part of the program for devices.
"""

from __future__ import annotations

import contextlib
import os
import site
import sys
from collections.abc import Iterator
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
"""The folder that holds the packages `pipeline` and `stages`; on a device, the program's file."""

_LEAVE_WORKING_FOLDER = "import sys; '' in sys.path and sys.path.remove('')\n"
_TRACEBACK = "Traceback (most recent call last):"
_RUN_MODULE = "import runpy; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"


def python_command(
    module: str, *arguments: str, has_safe_path: bool = sys.version_info >= (3, 11)
) -> list[str]:
    """Return the command line of `python -P -m module arguments`.

    Args:
        module: Name of a module of kdpipe.
        arguments: Its command-line arguments.
        has_safe_path: Whether this Python has the option `-P`. Python 3.10 does not have it; code that
            removes the working folder from the import path starts the module there.

    Example:
        >>> python_command("stages.runtimes.trial", "build")[1:]
        ['-P', '-m', 'stages.runtimes.trial', 'build']
    """
    if has_safe_path:
        return [sys.executable, "-P", "-m", module, *arguments]
    return python_code(_RUN_MODULE, module, *arguments)


def python_code(code: str, *arguments: str) -> list[str]:
    """Return the command line of `python -c code arguments`.

    The working folder is not on the import path of the code.
    """
    return [sys.executable, "-c", _LEAVE_WORKING_FOLDER + code, *arguments]


def environment() -> dict[str, str]:
    """Return the environment for a child process: the caller's, with kdpipe's folder on `PYTHONPATH`.

    `PYTHONPATH` lists kdpipe's own folder, then the user's `PYTHONPATH`, then the folders that this process
    can import from (a notebook may have added some). It leaves out the folders that Python adds because of
    how this process was started: the working folder and the folder of its script. An empty entry means the
    working folder too, so it is left out.
    """
    users = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    implicit = {"", _working_folder(), _script_folder()}
    ours = [] if str(HOME) in _site_folders() else [str(HOME)]
    entries = dict.fromkeys([*ours, *users, *(entry for entry in sys.path if entry not in implicit)])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entries)}


def last_line(stderr: str) -> str:
    r"""Return the line of a process's standard error that best explains its end.

    Args:
        stderr: Everything that the process wrote to standard error.

    Returns:
        After a traceback of Python, the line that names the exception: further lines of its message and of
        exit handlers may follow. Otherwise the last line with text; "" if there is none.

    Example:
        >>> last_line('Traceback (most recent call last):\n  File "a.py", line 1\nKeyError: 1\nlog closed\n')
        'KeyError: 1'
    """
    lines = [line.rstrip() for line in stderr.splitlines() if line.strip()]
    traceback = [number for number, line in enumerate(lines) if line == _TRACEBACK]
    after = lines[traceback[-1] + 1 :] if traceback else []
    exception = next((line for line in after if not line[0].isspace()), "")
    return exception or (lines[-1].strip() if lines else "")


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """Make the Python processes that other libraries start inside this block ignore the working folder."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def _working_folder() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:  # it was removed
        return ""


def _script_folder() -> str:
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return str(Path(file).resolve().parent) if file else ""


def _site_folders() -> set[str]:
    """Return the folders of installed packages.

    On `PYTHONPATH` they would come before the standard library and hide it.
    """
    return {*site.getsitepackages(), site.getusersitepackages()}
