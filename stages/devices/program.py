"""The program for the device: one file that Python runs, of the modules that need nothing else of kdpipe's.

Equal modules give equal bytes, so the file's digest tells whether the device has it already.
"""

from __future__ import annotations

import ast
import functools
import io
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

ROOTS = ("stages/devices/there/*.py", "stages/runtimes/tensorrt/build.py")
"""What is called there; with all that it imports, the same code as the line's own."""

OURS = ("pipeline", "stages")
MAIN = "import sys\nfrom stages.devices.there.agent import main\nsys.exit(main())\n"
LONG_AGO = (1980, 1, 1, 0, 0, 0)


@functools.cache
def program() -> bytes:
    """The file's bytes: a zip with a `__main__.py`, which `python FILE` runs."""
    modules = _with_imports({path for pattern in ROOTS for path in ROOT.glob(pattern)})
    sources = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in modules}
    # A package's own module may import what is not for devices; there it is empty.
    packages = {parent.as_posix() for name in sources for parent in Path(name).parents}
    sources |= {f"{package}/__init__.py": b"" for package in packages if package != "."}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in sorted({"__main__.py": MAIN.encode(), **sources}.items()):
            archive.writestr(zipfile.ZipInfo(name, LONG_AGO), content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _with_imports(modules: set[Path]) -> set[Path]:
    """The modules and all of ours that they import, from one to the next."""
    found: set[Path] = set()
    waiting = list(modules)
    while waiting:
        path = waiting.pop()
        if path not in found and path.name != "__init__.py":
            found.add(path)
            waiting += _imports(path)
    return found


def _imports(path: Path) -> list[Path]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    ours = [name for name in names if name.partition(".")[0] in OURS]
    files = [(ROOT / name.replace(".", "/")).with_suffix(".py") for name in ours]
    return [file for file in files if file.is_file()]
