"""Build the command and the environment of every Python process that kdpipe starts.

A child process must import the same kdpipe and the same packages as its parent, and nothing from the working
folder: a user's `stages/`, `pipeline.py` or `json.py` there is not ours. Standard library only, and Python
3.10 suffices: this module is part of the program for devices.
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
_RUN_MODULE = "import runpy; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"


def python_command(
    module: str, *arguments: str, has_safe_path: bool = sys.version_info >= (3, 11)
) -> list[str]:
    """Return the command line of `python -P -m module arguments`.

    Args:
        module: Name of a module of kdpipe.
        arguments: Its command-line arguments.
        has_safe_path: Whether this Python has the option `-P`. Python 3.10 has not; there the module is
            started by code that removes the working folder from the import path first.

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
    """Return the environment for a child process: the caller's, with a `PYTHONPATH` that finds kdpipe.

    First kdpipe's own folder, then the user's `PYTHONPATH`, then the folders that this process can import
    from (a notebook may have added some). Left out are the folders that Python adds for the way in which this
    process was started: the working folder and the folder of its script. An empty entry means the working
    folder as well, so it is dropped too.
    """
    users = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    implicit = {"", _working_folder(), _script_folder()}
    ours = [] if str(HOME) in _site_folders() else [str(HOME)]
    entries = dict.fromkeys([*ours, *users, *(entry for entry in sys.path if entry not in implicit)])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entries)}


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
    """The folders of installed packages: before the standard library on the path they would shadow it."""
    return {*site.getsitepackages(), site.getusersitepackages()}
