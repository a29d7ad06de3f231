"""What the README says to type works, and what it links to is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.command import ROOT, STARTER, kdpipe, write_profile

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("   #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def kdpipe_commands() -> list[str]:
    return [command for command in COMMANDS if command.startswith("kdpipe ")]


def test_the_two_commands_stand_on_top_and_are_targets_of_the_makefile() -> None:
    assert COMMANDS[:2] == ["make run", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("setup", "run", "test", "lint", "bench"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert "kdpipe run profiles/resnet_to_mobilenet.yaml" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", kdpipe_commands())
def test_every_kdpipe_command_is_understood(command: str, tmp_path: Path) -> None:
    """Commands that would train are planned instead: the same profile, options and checks."""
    words = shlex.split(command)[1:]
    if words[0] in ("run", "gate", "pick"):
        words[0] = "plan"
    store = [] if words[0] in ("show", "doctor", "device") else ["--store", str(tmp_path / "store")]
    if "mine.yaml" in words:
        words[words.index("mine.yaml")] = str(write_profile(tmp_path / "mine.yaml", STARTER))
    finished = kdpipe(*words, *store, cwd=ROOT)
    if "mine.yaml" in command:
        assert finished.returncode == 2
        assert "has no device 'pi'" in finished.stderr, "it gets as far as the user's own device"
    elif "path/to/images" in command:
        assert finished.returncode == 2
        assert "path/to/images" in finished.stderr, "it gets as far as the user's own folder"
    else:
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_every_profile_is_listed() -> None:
    for profile in (ROOT / "profiles").glob("*.yaml"):
        assert f"`{profile.stem}`" in README


def test_links_between_the_docs_lead_somewhere() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "docs/index.md"])
def test_every_file_and_make_target_that_a_page_names_exists(name: str) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page):
        assert "://" in target or (ROOT / name).parent.joinpath(target).exists(), target
    for path in re.findall(r"`([\w./]*/[\w./]*(?:\.\w+|/))`", page):
        assert "NAME" in path or path == "site/" or (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", page, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
