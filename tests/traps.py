"""A working folder whose files must never be imported: modules with the names of ours and of Python's."""

from __future__ import annotations

from pathlib import Path

TRAPS = ("stages/__init__.py", "pipeline.py", "json.py", "pickle.py", "socket.py", "numpy.py", "tempfile.py")


def lay_traps(folder: Path, *names: str) -> Path:
    """Write a module that raises for each of the names (default: `TRAPS`) into the folder; return it."""
    for name in names or TRAPS:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            f"raise RuntimeError('{name} of the working folder was imported')\n", encoding="utf-8"
        )
    return folder
