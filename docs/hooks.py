"""Hooks of the documentation site (`mkdocs.yml`).

The pages are written for GitHub; the site differs in three places:

* A link to a file outside docs/ becomes a link to the public sources, because the site has only the pages.
* A pipe inside code in a table is escaped on GitHub, and must not be escaped here.
* The API page of the package `kdpipe` has a sentence in its place where a checkout lacks that package.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

_LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)")
_CODE = re.compile(r"`[^`\n]+`")
_API = re.compile(r"^::: kdpipe\b.*\n(?:[ \t]+.*\n)*", re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Return the page's text as the site needs it.

    Raises:
        PluginError: if a link names a file that does not exist in the checkout.
    """
    docs = Path(config.docs_dir)
    root = docs.parent
    folder = (docs / page.file.src_uri).parent

    def public(match: re.Match[str]) -> str:
        target = (folder / match[2]).resolve()
        if target.is_relative_to(docs):
            return match[0]
        if not target.exists() or not target.is_relative_to(root):
            raise PluginError(f"{page.file.src_uri}: no such file: {match[2]}")
        return f"{match[1]}{config.extra['sources']}/{target.relative_to(root).as_posix()}"

    if not (root / "kdpipe" / "__init__.py").exists():
        markdown = _API.sub("This version has no such package.\n", markdown)
    lines = [_unescaped(line) if line.startswith("|") else line for line in markdown.split("\n")]
    return _LINK.sub(public, "\n".join(lines))


def _unescaped(row: str) -> str:
    return _CODE.sub(lambda code: code[0].replace("\\|", "|"), row)
