"""Plain words: what people read, and what code is named.

The words below are those of an old manner that had to be read twice. A word that has a plain use as well is
not listed, because it cannot be checked.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pipeline.cli import group
from pipeline.console.session import Session

ROOT = Path(__file__).resolve().parents[1]
REMEDY = "m" + "end"
"""Written in two parts, so that a search for the word finds nothing in this repository."""

WORDS = (
    r"tells|telling|lies|whom|thereof|whereof|wherein|in its stead|in their stead|at fault|wanting|"
    r"gives? out|of worth|none it has|spares?|a way back|is to be had|"
    rf"{REMEDY}s?|{REMEDY}ed|{REMEDY}ing|quantis\w*"
)
OLD = re.compile(rf"\b({WORDS})\b", re.IGNORECASE)

NAMES = {"asked", "fed", "found", "kept", "made", "mine", "one", "said", "tell", "told", "wanted"}
"""Names that could be of anything; a name says what the thing is."""

ERRORS = re.compile(r"(Error|Cannot|Missed)$")


def pages() -> list[Path]:
    """List the pages that people read: all Markdown files and page templates of the repository."""
    listing = subprocess.run(
        ["git", "ls-files", "*.md", "*.j2", ".github", "examples"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("the pages are listed by git, and this is no checkout")
    return [ROOT / name for name in listing.stdout.splitlines() if not name.endswith(".png")]


def sources() -> list[Path]:
    """List the Python files of the product."""
    folders = ("pipeline", "stages", "kdpipe", "examples", "benchmarks")
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def old_words(text: str) -> list[str]:
    """List the lines of a text that have such a word."""
    return [f"{match.group()}: {line.strip()}" for line in text.splitlines() for match in OLD.finditer(line)]


def every_help(command: click.Command, path: str) -> Iterator[tuple[str, str]]:
    """Yield the help text of a command and of all its own commands."""
    context = click.Context(command, info_name=path, obj=Session())
    yield path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from every_help(inner, f"{path} {name}")


def messages(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the texts that a file hands to its errors and notes, with the line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        if ERRORS.search(name) or name in ("note", "setting", "Option", "Command", "Stage", "fault", "Fault"):
            values = [*node.args, *(keyword.value for keyword in node.keywords)]
            for value in values:
                for part in ast.walk(value):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield part.lineno, part.value


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_use_plain_words(page: Path) -> None:
    assert old_words(page.read_text(encoding="utf-8")) == []


def test_help_texts_use_plain_words() -> None:
    found = [f"{path}: {line}" for path, text in every_help(group, "kdpipe") for line in old_words(text)]
    assert found == []


def test_the_help_of_settings_uses_plain_words() -> None:
    schema = json.loads((ROOT / "kdpipe.schema.json").read_text(encoding="utf-8"))
    assert old_words(json.dumps(schema, indent=1)) == []


@pytest.mark.long
def test_messages_use_plain_words() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line}"
        for file in sources()
        for number, text in messages(file)
        for line in old_words(text)
    ]
    assert found == []


@pytest.mark.long
def test_no_variable_is_called_what_anything_could_be_called() -> None:
    vague = []
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = ""
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                name = node.id
            elif isinstance(node, ast.arg):
                name = node.arg
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                name = node.name.lower()
            if name.lstrip("_") in NAMES:
                vague.append(f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}: {name}")
    assert vague == []


def test_a_remedy_is_called_a_hint_everywhere() -> None:
    done = subprocess.run(
        ["git", "grep", "-nwi", REMEDY], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode > 1:
        pytest.skip("git is not there, or this is no checkout")
    assert done.stdout == ""
