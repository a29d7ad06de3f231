"""Validation of a profile, every fault at once, each at its place and in plain words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import Fault
from pipeline.profile.plugin_kinds import Kinds
from pipeline.profile.setting_help import choices, entry, expected, group, kinds, shown, split, subgroups
from pipeline.profile.yaml_tree import Tree

Steps = tuple[str | int, ...]


def validated(tree: Tree, found: Kinds, document: str) -> tuple[BaseModel | None, list[Fault]]:
    """The typed profile, or the faults. document: the tree as JSON; types are taken at their word."""
    try:
        return found.model.model_validate_json(document, strict=True), []
    except ValidationError as error:
        return None, _faults(error.errors(include_url=False), tree, found)


@dataclass(frozen=True)
class _Spot:
    """What the model says of the place that an error names.

    path: of the profile, without pydantic's names of alternatives. owner: the group that `path` lies in.
    annotation, metadata, help: of the innermost declared setting on the way.
    """

    path: Steps
    owner: type[BaseModel]
    annotation: Any
    metadata: tuple[Any, ...] = ()
    help: str = ""


def _spot(model: type[BaseModel], location: Iterable[str | int]) -> _Spot:
    spot = _Spot((), model, model)
    for step in location:
        named = kinds(spot.annotation)
        if named:
            if step not in named:
                break
            spot = _Spot(spot.path, spot.owner, named[str(step)])
            continue
        inner = group(spot.annotation)
        if inner is not None:
            info = inner.model_fields.get(str(step))
            if info is None:
                return _Spot((*spot.path, step), inner, None)
            told = info.description or ""
            spot = _Spot((*spot.path, step), inner, info.annotation, tuple(info.metadata), told)
            continue
        members, _ = choices(spot.annotation)
        inside = entry(spot.annotation)
        if len(members) > 1 or inside is None:
            break  # an alternative's name, or the inside of a value that is judged as a whole
        annotation, metadata = split(inside)
        spot = _Spot((*spot.path, step), spot.owner, annotation, tuple(metadata), spot.help)
    return spot


def _faults(errors: list[ErrorDetails], tree: Tree, found: Kinds) -> list[Fault]:
    faults: dict[Steps, Fault] = {}
    errors = [one for error in errors for one in _rule_by_rule(error)]
    excused_keys: set[Steps] = set()  # keys that are missing only because they are misspelt
    for error in errors:
        spot = _spot(found.model, error["loc"])
        if error["type"] == "extra_forbidden":
            faults[spot.path], nearest = _unknown_key(tree, spot, found.model)
            excused_keys.add((*spot.path[:-1], nearest))
        elif error["type"] == "union_tag_not_found":
            group_tree, _ = tree.nearest(spot.path)
            misspelt = get_close_matches("name", group_tree.value, n=1)
            if misspelt:
                wrong = _Spot((*spot.path, misspelt[0]), spot.owner, None)
                faults[wrong.path] = _unknown(tree, wrong, "did you mean 'name'?")
            else:
                faults[(*spot.path, "name")] = _missing_name(tree, spot)
    for error in errors:
        spot = _spot(found.model, error["loc"])
        judge = _JUDGES.get(error["type"], _wrong_value)
        excused = spot.path in excused_keys or ("extends",) in excused_keys
        if judge is None or (error["type"] == "missing" and excused):
            continue
        fault = judge(tree, spot, error, found)
        key = (*spot.path, fault.message) if error["type"] == "value_error" else spot.path
        faults.setdefault(key, fault)
    return list(faults.values())


def _rule_by_rule(error: ErrorDetails) -> list[ErrorDetails]:
    """An error that tells of several broken rules as one error a rule."""
    context = error.get("ctx", {})
    rules = getattr(context.get("error"), "rules", None)
    return [{**error, "ctx": {**context, "error": rule}} for rule in rules] if rules else [error]


def _dotted(path: Steps) -> str:
    return ".".join(str(step) for step in path)


def _found(value: Any) -> str:
    return (
        shown(value) if not isinstance(value, str) else repr(value if len(value) < 60 else value[:59] + "…")
    )


def _missing_name(tree: Tree, spot: _Spot) -> Fault:
    place, _ = tree.nearest(spot.path)
    key = _dotted((*spot.path, "name"))
    return place.place.fault(
        f"{key} is missing, expected one of {', '.join(kinds(spot.annotation))}", key=key
    )


def _missing(tree: Tree, spot: _Spot, error: ErrorDetails, found: Kinds) -> Fault:
    place, _ = tree.nearest(spot.path[:-1])
    words = expected(spot.annotation, spot.metadata)
    message = f"{_dotted(spot.path)} is missing" + (f", expected {words}" if words else "")
    hint = f"{spot.path[-1]}: {spot.help}" if spot.help else ""
    return place.place.fault(message, key=_dotted(spot.path), hint=hint)


def _unknown_key(tree: Tree, spot: _Spot, model: type[BaseModel]) -> tuple[Fault, str]:
    """The fault, and the key of this group that was probably meant (or "")."""
    key = str(spot.path[-1])
    allowed = list(spot.owner.model_fields)
    if len(spot.path) == 1:
        allowed.insert(0, "extends")
    homes = _homes(key, model)
    alike = {name.casefold(): name for name in allowed}
    near = get_close_matches(key.casefold().replace("-", "_"), alike, n=1)
    if homes:
        return _unknown(tree, spot, f"{key!r} belongs {_any_of(homes)}"), ""
    if near:
        return _unknown(tree, spot, f"did you mean {alike[near[0]]!r}?"), alike[near[0]]
    elsewhere = {
        name: [*path, name] for path, _, inner in reversed([*subgroups(model)]) for name in inner.model_fields
    }
    far = get_close_matches(key, elsewhere, n=1, cutoff=0.75)
    if far:
        return _unknown(tree, spot, f"did you mean {_dotted(tuple(elsewhere[far[0]]))!r}?"), ""
    return _unknown(tree, spot, f"known here: {', '.join(allowed)}"), ""


def _unknown(tree: Tree, spot: _Spot, hint: str) -> Fault:
    place, _ = tree.nearest(spot.path)
    where = _dotted(spot.path[:-1])
    message = f"unknown key {str(spot.path[-1])!r}" + (f" in {where}" if where else "")
    return place.set_at.fault(message, key=_dotted(spot.path), hint=hint)


def _homes(key: str, model: type[BaseModel]) -> list[str]:
    """Where in a profile a key belongs; the name of a kind is told where not every kind has it."""
    groups = list(subgroups(model))
    homes: dict[str, list[str]] = {}
    for path, kind, inner in groups:
        if key in inner.model_fields:
            common = all(key in other.model_fields for place, _, other in groups if place == path)
            homes.setdefault(".".join(path), []).extend([] if common else [kind])
    return [_home(path, list(dict.fromkeys(named))) for path, named in homes.items()]


def _home(path: str, named: list[str]) -> str:
    if not path:
        return "at the top level"
    some = ", ".join(named[:3]) + (", …" if len(named) > 3 else "")
    return f"under {path}" + (f" with name {some}" if named else "")


def _any_of(homes: list[str]) -> str:
    first, *others = homes
    return " or ".join([first, *(home.removeprefix("under ") for home in others)])


def _wrong_value(tree: Tree, spot: _Spot, error: ErrorDetails, found: Kinds) -> Fault:
    place, depth = tree.nearest(spot.path)
    key = _dotted(spot.path[:depth]) or "the profile"
    value = place.plain()
    words = expected(spot.annotation, spot.metadata)
    if not words:
        words = error["msg"][:1].lower() + error["msg"][1:]
        return place.place.fault(f"{key}: found {_found(value)}: {words}", key=_dotted(spot.path))
    hint = _hint(value, spot, error, str(spot.path[-1]) if spot.path else "")
    message = f"{key}: found {_found(value)}, expected {words}"
    return place.place.fault(message, key=_dotted(spot.path[:depth]), hint=hint)


_NO_GROUP = ("model_type", "model_attributes_type", "dict_type")


def _hint(value: Any, spot: _Spot, error: ErrorDetails, key: str) -> str:
    kind = error["type"]
    if isinstance(value, str):
        if kind.startswith("bool"):
            yes = value.lower() in ("yes", "on", "y", "true", "1")
            no = value.lower() in ("no", "off", "n", "false", "0")
            return f"write {'true' if yes else 'false'}" if yes or no else ""
        if kind in ("int_type", "float_type") and re.fullmatch(r"[-+]?\d+(\.\d+)?", value):
            return f"write {value} without quotes"
        if kind in _NO_GROUP and value in kinds(spot.annotation):
            return f"write {{name: {value}}}"
        if kind == "literal_error":
            return _meant(value, [str(one) for one in error["ctx"]["expected"].replace("'", "").split(", ")])
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    if kind == "list_type" and not isinstance(value, dict):
        return f"write {key}: [{shown(value)}]"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f'write "{shown(value)}" in quotes if you mean text'
    if kind == "string_pattern_mismatch" and spot.help:
        return f"{key}: {spot.help}"
    if value is None and kind in _NO_GROUP:
        return f"give {key} a value or leave the key out"
    return ""


def _meant(value: str, names: Iterable[str]) -> str:
    near = get_close_matches(value, list(names), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def _unknown_kind(tree: Tree, spot: _Spot, error: ErrorDetails, found: Kinds) -> Fault:
    path = (*spot.path, "name")
    place, _ = tree.nearest(path)
    plain = _dotted(tuple(step for step in spot.path if isinstance(step, str)))
    names = list(dict.fromkeys([*kinds(spot.annotation), *found.installed.get(plain, [])]))
    message = f"{_dotted(path)}: found {_found(place.plain())}, expected one of {', '.join(names)}"
    hint = _meant(str(place.plain()), names) or "a kind of your own comes with an installed package"
    return place.place.fault(message, key=_dotted(path), hint=hint)


def _broken_rule(tree: Tree, spot: _Spot, error: ErrorDetails, found: Kinds) -> Fault:
    """A rule that ties several settings together; the first key that its message names is to blame."""
    message = str(error.get("ctx", {}).get("error", error["msg"]))
    section, depth = tree.nearest(spot.path)
    for word in re.findall(r"[A-Za-z_][\w.]*\w", message):
        path = tuple(int(part) if part.isdigit() else part for part in word.split("."))
        place, inside = section.nearest(path)
        if depth == len(spot.path) and inside == len(path):
            key = _dotted((*spot.path, *path))
            break
    else:
        place, key = section, _dotted(spot.path[:depth])
    prefix = f"{_dotted(spot.path)}: " if spot.path else ""
    return place.place.fault(prefix + message, key=key)


_JUDGES: dict[str, Callable[[Tree, _Spot, ErrorDetails, Kinds], Fault] | None] = {
    "extra_forbidden": None,
    "union_tag_not_found": None,
    "missing": _missing,
    "union_tag_invalid": _unknown_kind,
    "value_error": _broken_rule,
    "assertion_error": _broken_rule,
}
