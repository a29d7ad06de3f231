"""The program for the device: one file that Python runs, of the modules that need nothing else of kdpipe's.

Equal modules give equal bytes, so the file's digest shows whether the device has it already.
"""

from __future__ import annotations

import ast
import functools
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

ROOTS = (
    "stages/devices/there/*.py",
    "stages/runtimes/onnx_runtime/session.py",
    "stages/runtimes/openvino/session.py",
    "stages/runtimes/tensorrt/build.py",
)
"""The modules that are called there. All that they import is packed as well: the code that the line runs."""

OURS = ("pipeline", "stages")
MAIN = "import sys\nfrom stages.devices.there.agent import main\nsys.exit(main())\n"
TIMESTAMP = (1980, 1, 1, 0, 0, 0)
"""The modification time of every file in the program: the earliest that a zip can hold."""


@functools.cache
def program() -> bytes:
    """Return the file's bytes: a zip with a `__main__.py`, which `python FILE` runs."""
    sources = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in modules()}
    # A package's own module may import what is not for devices; there it is empty.
    packages = {parent.as_posix() for name in sources for parent in Path(name).parents}
    sources |= {f"{package}/__init__.py": b"" for package in packages if package != "."}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in sorted({"__main__.py": MAIN.encode(), **sources}.items()):
            archive.writestr(zipfile.ZipInfo(name, TIMESTAMP), content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def modules() -> set[Path]:
    """Return the files of `ROOTS` and of all modules of ours that they import, directly or not."""
    packed: set[Path] = set()
    queue = [path for pattern in ROOTS for path in ROOT.glob(pattern)]
    while queue:
        path = queue.pop()
        if path not in packed and path.name != "__init__.py":
            packed.add(path)
            queue += _own_files(path)
    return packed


def imported_names(path: Path) -> Iterator[str]:
    """Yield the dotted names that a module imports, inside functions too, but not for type checkers only."""
    queue: list[ast.AST] = [ast.parse(path.read_bytes())]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            queue += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        queue += ast.iter_child_nodes(node)


def _own_files(path: Path) -> list[Path]:
    own = [name for name in imported_names(path) if name.partition(".")[0] in OURS]
    files = [(ROOT / name.replace(".", "/")).with_suffix(".py") for name in own]
    return [file for file in files if file.is_file()]
