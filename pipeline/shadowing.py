"""Start the command line, unless another package hides one of kdpipe's.

Python imports the first package of a name on its path. A user's own `stages/` or `pipeline.py` that comes
before kdpipe's would be imported instead, so `start` checks this before it imports anything else.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from pipeline.child_process import HOME
from pipeline.errors import UsageError

PACKAGES = ("pipeline", "stages")


def start() -> int:
    """Run this process's command line and return its exit code."""
    for name in PACKAGES:
        file = hiding_file(name)
        if file is not None:
            return _fail(_error(name, file))
    from pipeline.cli import main

    return main()


def hiding_file(name: str) -> Path | None:
    """Return the file that Python would import instead of kdpipe's package `name`, or None."""
    spec = PathFinder.find_spec(name)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin)
    return None if file.resolve().parent == HOME / name else file


def _error(name: str, file: Path) -> UsageError:
    return UsageError(
        f"another Python package named {name} hides kdpipe's own",
        where=str(file),
        why=f"Python imports {name} from there; kdpipe's own is {HOME / name}",
        hint=_remedy(file.parent.parent if file.name == "__init__.py" else file.parent),
    )


def _remedy(folder: Path) -> str:
    entries = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if folder.resolve() in [Path(entry).resolve() for entry in entries]:
        return f"remove {folder} from PYTHONPATH (env -u PYTHONPATH kdpipe ...), or rename the package"
    if folder.resolve() == Path.cwd():
        return "start with `kdpipe` or `python -P -m pipeline`, which ignore the working folder"
    return f"take {folder} off Python's import path, or install kdpipe into an environment of its own"


def _fail(error: UsageError) -> int:
    from pipeline.console.session import Session

    session = Session()
    session.json = "--json" in sys.argv
    return session.fail(error)
