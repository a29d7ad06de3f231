"""What installed packages add through entry points; "module:name" references. Light: standard library alone.

Looking for entry points takes longer than all that happens before a stage runs, so it is asked for only
where a name is not built in.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def installed(group: str) -> dict[str, EntryPoint]:
    """By name, sorted, what installed packages offer in an entry-point group; nothing of it is imported.

    Of several packages that offer the same name the first on the path counts.
    """
    from importlib.metadata import entry_points  # slow to import

    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        found.setdefault(point.name, point)
    return found


def load(point: EntryPoint) -> Any:
    """What an entry point names. Raises ImportError that says what its package raised, whatever it was."""
    try:
        return point.load()
    except Exception as error:
        raise ImportError(f"{type(error).__name__}: {error}") from error


def owner(point: EntryPoint) -> str:
    """The package that brings an entry point, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an installed package"


def place(point: EntryPoint) -> str:
    """Where an entry point is declared, for an error's `where`."""
    return f"{owner(point)}, entry point {point.name} = {point.value} of group {point.group}"


def imported(reference: str) -> Any:
    """What "module:name" names. Raises ImportError or AttributeError if there is no such thing."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
