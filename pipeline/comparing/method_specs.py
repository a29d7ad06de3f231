"""What `kdpipe compare --methods` says: names, sums of methods with keys, files.

kd                                       one method as it is
msdcrd+kd                                both, added
kd:temperature=2:weight=0.5+msdcrd       with keys of theirs
profile                                  what the profile says under distill.methods
all                                      each built-in method by itself
@methods.yaml                            a file: label -> list of methods, as under distill.methods
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.profile.profile_model import built_in_model, kinds_at
from pipeline.profile.yaml_tree import SourcePlace, Tree, Unreadable, parse

DEFAULT = ("profile", "kd", "msdcrd")
ALONE = "student alone"
"""The label of the runs without a method."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_FORM = "write NAME, NAME:KEY=VALUE, NAME+NAME, profile, all or @FILE.yaml"


@dataclass(frozen=True)
class Entry:
    """One thing to compare: its label, and the methods as the profile would say them.

    methods: None for those of the profile. optional: one of `all`, left out where it does not fit.
    """

    label: str
    methods: tuple[dict[str, Any], ...] | None
    optional: bool = False

    def overrides(self) -> tuple[str, ...]:
        """What `--set` would be given."""
        return () if self.methods is None else (f"distill.methods={json.dumps(list(self.methods))}",)


def read_specs(texts: Iterable[str]) -> list[Entry]:
    """The entries that these values of `--methods` name, in order; each value may hold several.

    Raises UsageError for what cannot be read, and for a label said twice for different methods.
    """
    entries: dict[str, Entry] = {}
    for text in texts:
        for spec in _parts(text, ","):
            for entry in _entries(spec.strip()):
                before = entries.setdefault(entry.label, entry)
                if before.methods != entry.methods:
                    raise _fault(
                        spec, f"the label {entry.label!r} is used for two different lists of methods"
                    )
    return list(entries.values())


def _entries(spec: str) -> list[Entry]:
    if spec == "profile":
        return [Entry("profile", None)]
    if spec == "all":
        return [
            Entry(name, ({"name": name},), optional=True)
            for name in kinds_at(built_in_model(), "distill.methods")
        ]
    if spec.startswith("@"):
        return _from_file(spec)
    return [Entry(spec, tuple(_method(spec, part) for part in _parts(spec, "+")))]


def _method(spec: str, part: str) -> dict[str, Any]:
    name, *said = (piece.strip() for piece in _parts(part, ":"))
    if not _NAME.fullmatch(name):
        raise _fault(spec, f"{name!r} is no name of a method")
    found: dict[str, Any] = {"name": name}
    for piece in said:
        key, equals, text = piece.partition("=")
        if not equals or not _NAME.fullmatch(key) or key in found:
            raise _fault(spec, f"{piece!r} is no KEY=VALUE, or says a key again")
        found[key] = _read(text, spec).plain()
    return found


def _from_file(spec: str) -> list[Entry]:
    path = Path(spec[1:]).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _fault(spec, f"{path} cannot be read: {error.strerror}") from error
    tree = _read(content, str(path))
    if not isinstance(tree.value, dict) or not tree.value:
        raise _fault(spec, "a file of methods maps labels to lists of methods, as under distill.methods")
    entries = []
    for label, methods in tree.value.items():
        listed = methods.plain()
        if label in (ALONE, "profile") or not isinstance(listed, list) or not listed:
            why = f"{methods.set_at}: {label!r} is no free label with a list of methods"
            raise _fault(spec, why)
        entries.append(Entry(label, tuple(one if isinstance(one, dict) else {"name": one} for one in listed)))
    return entries


def _read(content: bytes | str, name: str) -> Tree:
    """YAML, in a file of that name or in a word of the command line."""
    at = SourcePlace(f"--methods {name}") if isinstance(content, str) else None
    try:
        tree, faults = parse(content, name, at=at)
    except Unreadable as error:
        raise _fault(name, f"{error.fault.place}: {error.fault.message}") from error
    if faults:
        raise _fault(name, f"{faults[0].place}: {faults[0].message}")
    return tree


def _parts(text: str, at: str) -> Sequence[str]:
    """`text` cut at a letter outside of brackets; at `+` only where a name follows (1e+3 is a number)."""
    parts, depth, begun = [], 0, 0
    for index, letter in enumerate(text):
        depth += (letter in "[{") - (letter in "]}")
        names = at != "+" or _NAME.match(text[index + 1 :].lstrip())
        if letter == at and depth == 0 and names:
            parts.append(text[begun:index])
            begun = index + 1
    return [*parts, text[begun:]]


def _fault(spec: str, why: str) -> UsageError:
    return UsageError("The methods to compare cannot be read", where=f"--methods {spec}", why=why, hint=_FORM)
