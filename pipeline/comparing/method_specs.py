"""Read the values of `kdpipe compare --methods`: names, sums of methods with settings, files.

kd                                       a method with its defaults
msdcrd+kd                                the sum of both
kd:temperature=2:weight=0.5+msdcrd       with settings
profile                                  distill.methods of the profile
all                                      each built-in method by itself
@methods.yaml                            a file: label -> list of methods, written like distill.methods
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
STUDENT_ALONE = "student alone"
"""The label of the runs without a method."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_FORM = "write NAME, NAME:KEY=VALUE, NAME+NAME, profile, all or @FILE.yaml"


@dataclass(frozen=True)
class MethodSpec:
    """An entry of a comparison: a label and the methods that it stands for.

    Attributes:
        label: The label.
        methods: The entries of distill.methods; None for those of the profile.
        optional: Whether it is left out if it does not fit the networks; True for the methods of `all`.
    """

    label: str
    methods: tuple[dict[str, Any], ...] | None
    optional: bool = False

    def overrides(self) -> tuple[str, ...]:
        """Return the values of `--set` that set these methods."""
        return () if self.methods is None else (f"distill.methods={json.dumps(list(self.methods))}",)


def read_specs(texts: Iterable[str]) -> list[MethodSpec]:
    """Return the entries of a comparison, in order.

    Args:
        texts: The values of `--methods`; each may hold several entries, with commas.

    Raises:
        UsageError: A value cannot be read, or a label is used for two different lists of methods.
    """
    specs: dict[str, MethodSpec] = {}
    for text in texts:
        for word in _parts(text, ","):
            for spec in _specs_of_word(word.strip()):
                if specs.setdefault(spec.label, spec).methods != spec.methods:
                    raise _fault(word, f"the label {spec.label!r} is used for two different lists of methods")
    return list(specs.values())


def _specs_of_word(word: str) -> list[MethodSpec]:
    if word == "profile":
        return [MethodSpec("profile", None)]
    if word == "all":
        return [
            MethodSpec(name, ({"name": name},), optional=True)
            for name in kinds_at(built_in_model(), "distill.methods")
        ]
    if word.startswith("@"):
        return _specs_of_file(word)
    return [MethodSpec(word, tuple(_method(word, part) for part in _parts(word, "+")))]


def _method(word: str, part: str) -> dict[str, Any]:
    name, *settings = (piece.strip() for piece in _parts(part, ":"))
    if not _NAME.fullmatch(name):
        raise _fault(word, f"{name!r} is not the name of a method")
    method: dict[str, Any] = {"name": name}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not _NAME.fullmatch(key):
            raise _fault(word, f"{setting!r} is not KEY=VALUE")
        if key in method:
            raise _fault(word, f"{setting!r} sets a key a second time")
        method[key] = _read(text, word).plain()
    return method


def _specs_of_file(word: str) -> list[MethodSpec]:
    path = Path(word[1:]).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _fault(word, f"{path} cannot be read: {error.strerror}") from error
    tree = _read(content, str(path))
    if not isinstance(tree.value, dict) or not tree.value:
        raise _fault(word, "a file of methods maps labels to lists of methods, written like distill.methods")
    specs = []
    for label, node in tree.value.items():
        methods = node.plain()
        if label in (STUDENT_ALONE, "profile"):
            raise _fault(word, f"{node.set_at}: the label {label!r} is reserved")
        if not isinstance(methods, list) or not methods:
            raise _fault(word, f"{node.set_at}: {label!r} has no list of methods")
        entries = tuple(method if isinstance(method, dict) else {"name": method} for method in methods)
        specs.append(MethodSpec(label, entries))
    return specs


def _read(content: bytes | str, name: str) -> Tree:
    """Parse YAML: the bytes of a file of that name, or a string of the command line."""
    at = SourcePlace(f"--methods {name}") if isinstance(content, str) else None
    try:
        tree, faults = parse(content, name, at=at)
    except Unreadable as error:
        raise _fault(name, f"{error.fault.place}: {error.fault.message}") from error
    if faults:
        raise _fault(name, f"{faults[0].place}: {faults[0].message}")
    return tree


def _parts(text: str, separator: str) -> Sequence[str]:
    """Split at a separator outside of brackets; at `+` only before a name, because 1e+3 is a number."""
    parts, depth, begin = [], 0, 0
    for index, letter in enumerate(text):
        depth += (letter in "[{") - (letter in "]}")
        splits = separator != "+" or _NAME.match(text[index + 1 :].lstrip())
        if letter == separator and depth == 0 and splits:
            parts.append(text[begin:index])
            begin = index + 1
    return [*parts, text[begin:]]


def _fault(word: str, why: str) -> UsageError:
    return UsageError("The methods to compare cannot be read", where=f"--methods {word}", why=why, hint=_FORM)
