"""Find and import the plug-ins of installed packages (entry points), and "module:name" references.

Standard library only. Looking for entry points takes longer than everything else before a stage runs, so
callers do it only for a name that is not built in.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def installed(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of installed packages in a group, by name, sorted. Import none of them.

    If several packages have the same name, the first on the import path counts.
    """
    from importlib.metadata import entry_points  # slow to import

    points: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        points.setdefault(point.name, point)
    return points


def load(point: EntryPoint) -> Any:
    """Import the object of an entry point.

    Raises:
        ImportError: Its package raised an exception of any kind, which the text contains.
    """
    try:
        return point.load()
    except Exception as error:
        raise ImportError(f"{type(error).__name__}: {error}") from error


def owner(point: EntryPoint) -> str:
    """Return the package that declares an entry point, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an installed package"


def place(point: EntryPoint) -> str:
    """Return where an entry point is declared, for an error's `where`."""
    return f"{owner(point)}, entry point {point.name} = {point.value} of group {point.group}"


def imported(reference: str) -> Any:
    """Import the object at "module:name".

    Raises:
        ImportError: There is no such module, or it cannot be imported.
        AttributeError: The module has no such name.
    """
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
