"""The layout of the code: which folder may import which.

The rules are those of the page on the house in CONTRIBUTING.md. Imports inside functions count as well;
imports for type checkers do not.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages import COMPARE, DEVICE, STAGES

ROOT = Path(__file__).resolve().parents[1]

BASE = (
    "pipeline",
    "pipeline.child_process",
    "pipeline.hashing",
    "pipeline.errors",
    "pipeline.heartbeat",
    "pipeline.json_files",
    "pipeline.junit",
    "pipeline.machine",
    "pipeline.paths",
    "pipeline.plugins",
    "pipeline.stage",
)
"""What everything may import: standard library only."""

STAGE_MODULES = tuple(stage.module for stage in (*STAGES, COMPARE, DEVICE))

ENGINE: tuple[tuple[str, ...], ...] = (
    BASE,
    ("stages", "stages.fields"),
    ("pipeline.profile", "pipeline.store"),
    ("pipeline.running",),
    ("pipeline.console",),
    ("pipeline.cluster", "pipeline.comparing", "pipeline.devices", "pipeline.doctor", "pipeline.tracking"),
    ("pipeline.commands",),
    ("pipeline.cli",),
    ("pipeline.on_cores", "pipeline.shadowing"),
    ("pipeline.__main__",),
)
"""The engine's layers, the lowest first. A place imports places of lower layers only."""

WORK: tuple[tuple[str, ...], ...] = (
    BASE,
    ("stages", "stages.fields"),
    ("stages.bundle", "stages.data", "stages.statistics"),
    ("stages.models",),
    ("stages.methods", "stages.onnx_files"),
    ("stages.runtimes", "stages.training"),
    ("stages.measuring", "stages.quantizing"),
    ("stages.quantization_aware", "stages.debugging", "stages.gating", "stages.reporting"),
    ("stages.comparing", "stages.devices"),
    ("stages.settings",),
    STAGE_MODULES,
)
"""The layers of the stages' own code, the lowest first."""

MEANT = {("stages", "pipeline.stage")}
"""The one table: it names the stages for the engine, in the engine's own terms."""

HEAVY = (
    "lightning_fabric",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "pandas",
    "PIL",
    "scipy",
    "sklearn",
    "tensorrt",
    "timm",
    "torch",
    "torchvision",
)


RUNTIME_WORDS = re.compile(
    r"onnx[ _]?runtime|openvino|tensorrt|trtexec|ncnn|precision|batch_(min|opt|max)|image_shape",
    re.IGNORECASE,
)
"""Runtimes by name, and what only they need: the engine is to know neither."""

TARGETS_IN_HELP = {
    "pipeline/commands/debug.py": ("openvino-int8", "onnxruntime-int8"),
    "pipeline/commands/show.py": ("onnxruntime-int8",),
    "pipeline/profile/reference.py": ("onnxruntime-fp32",),
}
"""Targets in examples for users, by file."""


@functools.cache
def modules() -> dict[str, Path]:
    """Map the dotted name of every module of the product to its file."""
    files = [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("stages/**/*.py")]
    names = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    return {name.removesuffix(".__init__"): file for file, name in names.items()}


def imported_names(file: Path) -> Iterator[tuple[str, int]]:
    """Yield what a file imports and in which line, inside functions too, but not for type checkers only."""
    queue: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            queue += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in modules() else str(node.module)), node.lineno
        queue += ast.iter_child_nodes(node)


@functools.cache
def imports() -> dict[str, dict[str, int]]:
    """Map each module to the modules of ours that it imports, with the line."""
    return {
        name: {other: line for other, line in imported_names(file) if other in modules() and other != name}
        for name, file in modules().items()
    }


def place_of(module: str) -> str:
    """The folder or top-level file that a module belongs to."""
    return ".".join(module.split(".")[:2])


def upward(layers: tuple[tuple[str, ...], ...], packages: tuple[str, ...]) -> list[str]:
    """List the imports that do not run downwards through these layers, and places that are in none."""
    rank = {place: number for number, layer in enumerate(layers) for place in layer}
    wrong = []
    for module, others in imports().items():
        here = place_of(module)
        if not module.startswith(packages) or (here in BASE and layers is WORK):
            continue
        if here not in rank:
            wrong.append(f"{module}: {here} is in no layer")
            continue
        for other, line in others.items():
            there = place_of(other)
            if there == here or (here, there) in MEANT:
                continue
            if there not in rank or rank[there] >= max(1, rank[here]):
                wrong.append(f"{modules()[module].relative_to(ROOT)}:{line} imports {other}")
    return wrong


@pytest.mark.long
def test_the_engine_imports_downwards() -> None:
    assert upward(ENGINE, ("pipeline",)) == []


def test_the_stages_import_downwards_and_of_the_engine_its_base_only() -> None:
    assert upward(WORK, ("stages",)) == []


def test_there_is_no_circle_of_imports() -> None:
    visited: dict[str, bool] = {}
    circles: list[list[str]] = []

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            circles.append([*path[path.index(module) :], module])
            return
        if visited.get(module):
            return
        for other in imports()[module]:
            visit(other, [*path, module])
        visited[module] = True

    for module in modules():
        visit(module, [])
    assert circles == []


def test_the_engine_imports_nothing_heavy() -> None:
    heavy = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for module, file in modules().items()
        if module.startswith("pipeline")
        for name, line in imported_names(file)
        if name.split(".")[0] in HEAVY
    ]
    assert heavy == []


def test_the_engine_names_no_runtime() -> None:
    named = []
    for file in ROOT.glob("pipeline/**/*.py"):
        path = file.relative_to(ROOT).as_posix()
        text = file.read_text(encoding="utf-8")
        for example in TARGETS_IN_HELP.get(path, ()):
            assert example in text, f"{path} no longer names {example}"
            text = text.replace(example, "")
        lines = enumerate(text.splitlines(), 1)
        named += [f"{path}:{number}: {line}" for number, line in lines if RUNTIME_WORDS.search(line)]
    assert named == []


def test_only_the_stage_gate_decides_what_ships() -> None:
    importers = [name for name, others in imports().items() if "stages.gating.picking" in others]
    assert importers == ["stages.gate"]


@pytest.mark.parametrize("module", STAGE_MODULES)
def test_no_stage_is_imported_by_our_code(module: str) -> None:
    importers = [name for name, others in imports().items() if module in others]
    assert importers == []
