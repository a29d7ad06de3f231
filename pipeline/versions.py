"""Versions of installed Python distributions, read off the names of their folders. Imports nothing heavy.

`importlib.metadata` reads a file for each distribution and is slow to import; a plan of cached stages
has no time for either.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of those distributions that are installed, the first on sys.path winning."""
    wanted = {_normal(name): name for name in names}
    versions: dict[str, str] = {}
    for entry in sys.path:
        for name, version in _distributions(entry or "."):
            if name in wanted:
                versions.setdefault(wanted[name], version)
    return versions


def release(version: str, *, patch: bool = True) -> str:
    """A version without its local part; without `patch` its first two numbers only.

    `2.14.1+cu130` -> `2.14.1`, or `2.14`.
    """
    public = version.partition("+")[0]
    first_two = re.match(r"\d+\.\d+", public)
    return first_two.group() if first_two and not patch else public


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _distributions(folder: str) -> Iterable[tuple[str, str]]:
    try:
        entries = os.listdir(folder)  # noqa: PTH208 - a path object for each of hundreds costs more
    except OSError:
        return
    for entry in entries:
        if entry.endswith((".dist-info", ".egg-info")):
            name, _, version = entry[: -len(".dist-info")].partition("-")
            if version:
                yield _normal(name), version.partition("-")[0]  # an egg's name goes on with -py3.11
