"""Merge a profile's layers: the profiles that it extends, itself, and `--set KEY=VALUE`.

Groups of keys are merged, lists and scalars replaced. Where the `name` that selects a group's kind
changes (`data.name`), the group is replaced as a whole, because the new kind has other keys.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.errors import Fault, UsageError
from pipeline.profile.files import ProfileFiles, nearest, search
from pipeline.profile.yaml_tree import SourcePlace, Tree, Unreadable, parse

Default = Callable[[tuple[str, ...]], Any]
"""The default, JSON-ready, of the setting at a path; None if it has none."""


@dataclass
class Layers:
    """The layers of a profile, read from its files.

    Attributes:
        files: Where the files are read from.
        contents: By path, what was read; the profile itself comes first.
        absent: Paths without a file at which a file would have been read.
        faults: What is invalid.
        readable: Whether enough was read to look for faults of the settings.
    """

    files: ProfileFiles = field(default_factory=ProfileFiles)
    contents: dict[Path, bytes] = field(default_factory=dict)
    absent: list[Path] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    readable: bool = True

    def tree(self, path: Path) -> Tree:
        """Return the profile at `path`, merged with all that it extends.

        Returns:
            A mapping; empty if nothing can be read. `faults` then has the reason.

        Raises:
            UsageError: The file cannot be read.
        """
        return self._resolved(path, (), {})

    def _resolved(self, path: Path, chain: tuple[Path, ...], done: dict[Path, Tree]) -> Tree:
        real = path.resolve()
        if real not in done:
            own = self._parsed(path)
            extends = own.value.pop("extends", None)
            base: Tree | None = None
            for entry in self._entries(extends):
                file = self._base_file(entry, path)
                if file is None:
                    continue
                names = (*chain, path)
                if file.resolve() in [name.resolve() for name in names]:
                    chain_text = " -> ".join(str(name) for name in (*names, file))
                    message = f"profiles extend each other: {chain_text}"
                    self._refuse(entry.place.fault(message, key="extends"))
                    continue
                layer = self._resolved(file, names, done)
                base = layer if base is None else merged(base, layer)
            done[real] = own if base is None else merged(base, own)
        return done[real]

    def _parsed(self, path: Path) -> Tree:
        empty = Tree({}, SourcePlace(str(path), 1, 1))
        self.contents[path] = content = self.files.read(path)
        try:
            tree, faults = parse(content, str(path))
        except Unreadable as error:
            self._refuse(error.fault)
            return empty
        self.faults += faults
        if tree.value is None:
            self._refuse(tree.place.fault("the profile is empty", hint="it needs data, teacher and student"))
        elif not isinstance(tree.value, dict):
            value = "a list" if isinstance(tree.value, list) else repr(tree.value)[:60]
            self._refuse(tree.place.fault(f"a profile is a group of keys, found {value}"))
        else:
            return tree
        return empty

    def _entries(self, extends: Tree | None) -> list[Tree]:
        if extends is None:
            return []
        entries = extends.value if isinstance(extends.value, list) else [extends]
        wrong = [tree for tree in entries if not isinstance(tree.value, str) or not tree.value]
        for tree in wrong:
            message = "extends: expected a profile's path, or a list of them"
            self._refuse(tree.place.fault(message, key="extends"))
        return [tree for tree in entries if tree not in wrong]

    def _base_file(self, entry: Tree, path: Path) -> Path | None:
        result = search(entry.value, path.parent, self.files.is_file)
        self.absent += result.absent
        if result.file is None:
            near = nearest(entry.value, (path.parent / entry.value).parent)
            near = [os.path.relpath(name, path.parent) if os.sep in name else name for name in near]
            hint = f"did you mean one of these? {', '.join(near)}" if near else ""
            message = f"extends: there is no profile {entry.value!r}"
            self._refuse(entry.place.fault(message, key="extends", hint=hint))
        else:
            try:
                self.files.read(result.file)
            except UsageError as error:
                self._refuse(entry.place.fault(f"extends: {error.what}: {error.why}", key="extends"))
                return None
        return result.file

    def _refuse(self, fault: Fault) -> None:
        """Record a fault that leaves too little to validate the rest."""
        self.faults.append(fault)
        self.readable = False


def merged(base: Tree, over: Tree, *, root: bool = True) -> Tree:
    """Return `base` with the values of `over`; `root` for a whole profile, whose `name` selects no kind."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    if not root and _kind_changes(base, over.value.get("name")):
        return over
    values = dict(base.value)
    for key, tree in over.value.items():
        values[key] = merged(values[key], tree, root=False) if key in values else tree
    return replace(over, value=values)


def _kind_changes(base: Tree, name: Tree | None) -> bool:
    old = base.value.get("name")
    return old is not None and name is not None and old.value != name.value


def parse_overrides(overrides: Sequence[str]) -> tuple[list[tuple[tuple[str, ...], Tree]], list[Fault]]:
    """Return the path and value of every `KEY=VALUE`, and the faults of invalid ones."""
    assignments: list[tuple[tuple[str, ...], Tree]] = []
    faults: list[Fault] = []
    for override in overrides:
        try:
            assignments.append(_parse_override(override))
        except Unreadable as error:
            faults.append(error.fault)
    return assignments, faults


def overridden(tree: Tree, overrides: Sequence[str], default: Default) -> tuple[Tree, list[Fault]]:
    """Set every `KEY=VALUE` in a profile, in order.

    Args:
        tree: The profile.
        overrides: `KEY=VALUE` with dotted keys.
        default: Returns the default of a setting.

    Returns:
        The profile with the values, and the faults; their place is `--set KEY`.
    """
    assignments, faults = parse_overrides(overrides)
    # Names first: a new kind empties its group, whether it was given before or after the group's keys.
    for path, value in assignments:
        steps = _steps(tree, path[:-1])
        group, depth = tree.nearest(steps)
        names_kind = path[-1] == "name" and depth == len(steps) > 0
        if names_kind and isinstance(group.value, dict) and _kind_changes(group, value):
            tree = _put(tree, path[:-1], Tree({}, value.place, value.place), (), default)
    for path, value in assignments:
        try:
            tree = _put(tree, path, value, (), default)
        except Unreadable as error:
            faults.append(error.fault)
    return tree, faults


def _parse_override(override: str) -> tuple[tuple[str, ...], Tree]:
    key, equals, text = override.partition("=")
    key = key.strip()
    place = SourcePlace(f"--set {key}" if key else "--set")
    example = "write --set KEY=VALUE, for example --set distill.epochs=5"
    if not equals:
        raise Unreadable(place.fault(f"no '=' in {override!r}", key=key, hint=example))
    path = tuple(key.split("."))
    if not key.isprintable():
        raise Unreadable(place.fault(f"{key!r} is not a key", key=key, hint=example))
    if not all(path):
        raise Unreadable(place.fault(f"no key before '=' in {override!r}", key=key, hint=example))
    if path[0] == "extends":
        message = "extends cannot be set here: it is read from the file"
        raise Unreadable(place.fault(message, key=key, hint="write it into a profile of your own"))
    value, faults = parse(text, str(place), at=place)
    if faults:
        raise Unreadable(faults[0])
    return path, replace(value, key_place=place)


def _steps(tree: Tree, path: tuple[str, ...]) -> tuple[str | int, ...]:
    """Return the path with the positions in lists as numbers."""
    steps: list[str | int] = []
    for part in path:
        above, _ = tree.nearest(tuple(steps))
        steps.append(int(part) if isinstance(above.value, list) and _is_position(part) else part)
    return tuple(steps)


def _is_position(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) < 10


def _put(tree: Tree, path: tuple[str, ...], value: Tree, above: tuple[str, ...], default: Default) -> Tree:
    if not path:
        return value
    part, rest = path[0], path[1:]
    here = (*above, part)
    if tree.value is None and _is_position(part):
        listed = default(above)
        if isinstance(listed, list):
            tree = replace(tree, value=[_defaults(entry) for entry in listed])
    if isinstance(tree.value, list):
        count = len(tree.value)
        if not _is_position(part) or int(part) > count:
            message = f"{'.'.join(above)} is a list of {count}: {part!r} is not one of its positions"
            places = f"0 to {count - 1}" if count > 1 else "0"
            hint = f"its positions are {places}; {count} adds an entry"
            raise Unreadable(value.place.fault(message, key=".".join((*above, *path)), hint=hint))
        values = list(tree.value)
        old = values[int(part)] if int(part) < count else Tree(None, value.place)
        values[int(part) : int(part) + 1] = [_put(old, rest, value, here, default)]
        return replace(tree, value=values)
    if tree.value is None or isinstance(tree.value, dict):
        groups = dict(tree.value or {})
        old = groups.get(part, Tree(None, value.place, value.place))
        groups[part] = _put(old, rest, value, here, default)
        return replace(tree, value=groups)
    message = f"{'.'.join(above)} is {tree.value!r}, not a group of keys"
    hint = f"set it as a whole: --set '{'.'.join(above)}={{{part}: …}}'"
    raise Unreadable(value.place.fault(message, key=".".join((*above, *path)), hint=hint))


def _defaults(value: Any) -> Tree:
    place = SourcePlace("default")
    if isinstance(value, dict):
        return Tree({key: _defaults(entry) for key, entry in value.items()}, place)
    if isinstance(value, list):
        return Tree([_defaults(entry) for entry in value], place)
    return Tree(value, place)
