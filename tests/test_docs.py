"""Every page is in the navigation, every API page names real modules, and the site loads nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.methods.settings import BUILT_IN
from tests.command import ROOT

DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}


def targets(entries: list[Any]) -> Iterator[str]:
    """The pages of a part of the navigation, in order."""
    for entry in entries:
        for value in entry.values():
            yield from targets(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation_once() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(targets(config["nav"])) == sorted(PAGES)


def test_every_module_of_the_api_pages_exists() -> None:
    modules = [
        name
        for page in (DOCS / "reference" / "api").glob("*.md")
        for name in re.findall(r"^::: ([\w.]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(modules) > 20
    for name in modules:
        path = ROOT.joinpath(*name.split("."))
        # `kdpipe` may be absent: then docs/hooks.py leaves it out.
        assert path.with_suffix(".py").exists() or (path / "__init__.py").exists() or name == "kdpipe", name


def test_every_built_in_method_is_on_the_page_of_the_losses() -> None:
    page = (DOCS / "reference" / "api" / "losses.md").read_text(encoding="utf-8")
    names = [kind.model_fields["name"].annotation.__args__[0] for kind in BUILT_IN]  # type: ignore[union-attr]
    assert re.findall(r"^::: stages\.methods\.(\w+)$", page, re.MULTILINE) == names


def outside(text: str) -> list[str]:
    """What a page or a style sheet loads from another host: not the links that a reader follows."""
    loading = (
        r"<(?!a\b)\w+\b[^>]*?\b(?:href|src|srcset|poster|data)\s*=\s*[\"']?\s*((?:https?:)?//[^\"'\s>]+)"
    )
    styles = r"(?:url\(\s*|@import\s+)[\"']?((?:https?:)?//[^\"')\s]+)"
    return [*re.findall(loading, text, re.IGNORECASE), *re.findall(styles, text, re.IGNORECASE)]


def test_what_is_loaded_from_another_host_is_recognised() -> None:
    assert (
        outside('<a class="x" href="https://a.org/">A</a> <code>https://b.org</code> <img src="c.png">') == []
    )
    assert outside('<link rel="stylesheet" href="https://fonts.example/css">') == [
        "https://fonts.example/css"
    ]
    assert outside("<script src=//cdn.example/x.js></script>") == ["//cdn.example/x.js"]
    assert outside("@font-face{src:url(https://fonts.example/a.woff)}") == ["https://fonts.example/a.woff"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed; `make docs` installs it")
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    site = tmp_path / "site"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert built.returncode == 0, built.stderr
    pages = {path.relative_to(site).with_suffix(".md").as_posix() for path in site.rglob("*.html")}
    assert pages == {*PAGES, "404.md"}
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        assert outside(path.read_text(encoding="utf-8")) == [], path.relative_to(site)
    # The theme's script loads mermaid from another host for such a diagram, and figures for `repo_url`.
    html = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.html"))
    assert 'class="mermaid"' not in html
    assert 'data-md-component="source"' not in html
    assert "\\|" not in html
