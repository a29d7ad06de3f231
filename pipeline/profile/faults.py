"""Validate a profile, and report every fault at its place in plain words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import Fault
from pipeline.profile.declarations import (
    alternatives,
    entry_type,
    expected_text,
    group_model,
    kinds_of,
    split_annotated,
    subgroups,
    value_text,
)
from pipeline.profile.profile_model import ProfileModel
from pipeline.profile.yaml_tree import Tree

Steps = tuple[str | int, ...]


def validated(tree: Tree, profile_model: ProfileModel, document: str) -> tuple[BaseModel | None, list[Fault]]:
    """Validate a profile.

    Args:
        tree: The profile, for the places of faults.
        profile_model: The typed model.
        document: The profile as JSON. Types are not converted: a number in quotes is text.

    Returns:
        The typed profile and no faults, or None and the faults.
    """
    try:
        return profile_model.model.model_validate_json(document, strict=True), []
    except ValidationError as error:
        return None, _faults(error.errors(include_url=False), tree, profile_model)


@dataclass(frozen=True)
class _Setting:
    """The declaration at the place of an error.

    Attributes:
        path: The path in the profile, without pydantic's names of alternatives.
        owner: The group that contains `path`.
        annotation: The annotation of the innermost declared setting on the path.
        metadata: The constraints of that setting.
        help: The help text of that setting.
    """

    path: Steps
    owner: type[BaseModel]
    annotation: Any
    metadata: tuple[Any, ...] = ()
    help: str = ""


def _setting_at(model: type[BaseModel], location: Iterable[str | int]) -> _Setting:
    setting = _Setting((), model, model)
    for step in location:
        by_name = kinds_of(setting.annotation)
        if by_name:
            if step not in by_name:
                break
            setting = _Setting(setting.path, setting.owner, by_name[str(step)])
            continue
        inner = group_model(setting.annotation)
        if inner is not None:
            info = inner.model_fields.get(str(step))
            if info is None:
                return _Setting((*setting.path, step), inner, None)
            help_text = info.description or ""
            setting = _Setting((*setting.path, step), inner, info.annotation, tuple(info.metadata), help_text)
            continue
        members, _ = alternatives(setting.annotation)
        inside = entry_type(setting.annotation)
        if len(members) > 1 or inside is None:
            break  # an alternative's name, or the inside of a value that is judged as a whole
        annotation, metadata = split_annotated(inside)
        setting = _Setting((*setting.path, step), setting.owner, annotation, tuple(metadata), setting.help)
    return setting


def _faults(errors: list[ErrorDetails], tree: Tree, profile_model: ProfileModel) -> list[Fault]:
    faults: dict[Steps, Fault] = {}
    errors = [part for error in errors for part in _split_by_rule(error)]
    excused_keys: set[Steps] = set()  # keys that are missing only because they are misspelt
    for error in errors:
        setting = _setting_at(profile_model.model, error["loc"])
        if error["type"] == "extra_forbidden":
            faults[setting.path], nearest = _unknown_key(tree, setting, profile_model.model)
            excused_keys.add((*setting.path[:-1], nearest))
        elif error["type"] == "union_tag_not_found":
            group_tree, _ = tree.nearest(setting.path)
            misspelt = get_close_matches("name", group_tree.value, n=1)
            if misspelt:
                wrong = _Setting((*setting.path, misspelt[0]), setting.owner, None)
                faults[wrong.path] = _unknown(tree, wrong, "did you mean 'name'?")
            else:
                faults[(*setting.path, "name")] = _missing_name(tree, setting)
    for error in errors:
        setting = _setting_at(profile_model.model, error["loc"])
        make_fault = _FAULT_MAKERS.get(error["type"], _wrong_value)
        excused = setting.path in excused_keys or ("extends",) in excused_keys
        if make_fault is None or (error["type"] == "missing" and excused):
            continue
        fault = make_fault(tree, setting, error, profile_model)
        key = (*setting.path, fault.message) if error["type"] == "value_error" else setting.path
        faults.setdefault(key, fault)
    return list(faults.values())


def _split_by_rule(error: ErrorDetails) -> list[ErrorDetails]:
    """Return one error for each broken rule of an error."""
    context = error.get("ctx", {})
    rules = getattr(context.get("error"), "rules", None)
    return [{**error, "ctx": {**context, "error": rule}} for rule in rules] if rules else [error]


def _dotted(path: Steps) -> str:
    return ".".join(str(step) for step in path)


def _value_in_words(value: Any) -> str:
    if not isinstance(value, str):
        return value_text(value)
    return repr(value if len(value) < 60 else value[:59] + "…")


def _missing_name(tree: Tree, setting: _Setting) -> Fault:
    node, _ = tree.nearest(setting.path)
    key = _dotted((*setting.path, "name"))
    return node.place.fault(
        f"{key} is missing, expected one of {', '.join(kinds_of(setting.annotation))}", key=key
    )


def _missing(tree: Tree, setting: _Setting, _error: ErrorDetails, _profile_model: ProfileModel) -> Fault:
    node, _ = tree.nearest(setting.path[:-1])
    words = expected_text(setting.annotation, setting.metadata)
    message = f"{_dotted(setting.path)} is missing" + (f", expected {words}" if words else "")
    hint = f"{setting.path[-1]}: {setting.help}" if setting.help else ""
    return node.place.fault(message, key=_dotted(setting.path), hint=hint)


def _unknown_key(tree: Tree, setting: _Setting, model: type[BaseModel]) -> tuple[Fault, str]:
    """Return the fault, and the key of this group that was probably meant (or "")."""
    key = str(setting.path[-1])
    allowed = list(setting.owner.model_fields)
    if len(setting.path) == 1:
        allowed.insert(0, "extends")
    groups_in_words = _groups_with_key(key, model)
    alike = {name.casefold(): name for name in allowed}
    near = get_close_matches(key.casefold().replace("-", "_"), alike, n=1)
    if groups_in_words:
        return _unknown(tree, setting, f"{key!r} belongs {_any_of(groups_in_words)}"), ""
    if near:
        return _unknown(tree, setting, f"did you mean {alike[near[0]]!r}?"), alike[near[0]]
    elsewhere = {
        name: [*path, name] for path, _, inner in reversed([*subgroups(model)]) for name in inner.model_fields
    }
    far = get_close_matches(key, elsewhere, n=1, cutoff=0.75)
    if far:
        return _unknown(tree, setting, f"did you mean {_dotted(tuple(elsewhere[far[0]]))!r}?"), ""
    return _unknown(tree, setting, f"known here: {', '.join(allowed)}"), ""


def _unknown(tree: Tree, setting: _Setting, hint: str) -> Fault:
    node, _ = tree.nearest(setting.path)
    where = _dotted(setting.path[:-1])
    message = f"unknown key {str(setting.path[-1])!r}" + (f" in {where}" if where else "")
    return node.set_at.fault(message, key=_dotted(setting.path), hint=hint)


def _groups_with_key(key: str, model: type[BaseModel]) -> list[str]:
    """Return the groups that have a key, in words, with the names of the kinds if not every kind has it."""
    groups = list(subgroups(model))
    groups_in_words: dict[str, list[str]] = {}
    for path, kind, inner in groups:
        if key in inner.model_fields:
            common = all(key in other.model_fields for other_path, _, other in groups if other_path == path)
            groups_in_words.setdefault(".".join(path), []).extend([] if common else [kind])
    return [_group_in_words(path, list(dict.fromkeys(named))) for path, named in groups_in_words.items()]


def _group_in_words(path: str, named: list[str]) -> str:
    if not path:
        return "at the top level"
    some = ", ".join(named[:3]) + (", …" if len(named) > 3 else "")
    return f"under {path}" + (f" with name {some}" if named else "")


def _any_of(groups_in_words: list[str]) -> str:
    first, *others = groups_in_words
    return " or ".join([first, *(text.removeprefix("under ") for text in others)])


def _wrong_value(tree: Tree, setting: _Setting, error: ErrorDetails, _profile_model: ProfileModel) -> Fault:
    node, depth = tree.nearest(setting.path)
    key = _dotted(setting.path[:depth]) or "the profile"
    value = node.plain()
    words = expected_text(setting.annotation, setting.metadata)
    if not words:
        words = error["msg"][:1].lower() + error["msg"][1:]
        return node.place.fault(f"{key}: found {_value_in_words(value)}: {words}", key=_dotted(setting.path))
    hint = _hint(value, setting, error, str(setting.path[-1]) if setting.path else "")
    message = f"{key}: found {_value_in_words(value)}, expected {words}"
    return node.place.fault(message, key=_dotted(setting.path[:depth]), hint=hint)


_GROUP_EXPECTED = ("model_type", "model_attributes_type", "dict_type")


def _hint(value: Any, setting: _Setting, error: ErrorDetails, key: str) -> str:
    kind = error["type"]
    if isinstance(value, str):
        if kind.startswith("bool"):
            yes = value.lower() in ("yes", "on", "y", "true", "1")
            no = value.lower() in ("no", "off", "n", "false", "0")
            return f"write {'true' if yes else 'false'}" if yes or no else ""
        if kind in ("int_type", "float_type") and re.fullmatch(r"[-+]?\d+(\.\d+)?", value):
            return f"write {value} without quotes"
        if kind in _GROUP_EXPECTED and value in kinds_of(setting.annotation):
            return f"write {{name: {value}}}"
        if kind == "literal_error":
            return _did_you_mean(value, error["ctx"]["expected"].replace("'", "").split(", "))
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    if kind == "list_type" and not isinstance(value, dict):
        return f"write {key}: [{value_text(value)}]"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f'write "{value_text(value)}" in quotes if you mean text'
    if kind == "string_pattern_mismatch" and setting.help:
        return f"{key}: {setting.help}"
    if value is None and kind in _GROUP_EXPECTED:
        return f"give {key} a value or leave the key out"
    return ""


def _did_you_mean(value: str, names: Iterable[str]) -> str:
    near = get_close_matches(value, list(names), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def _unknown_kind(tree: Tree, setting: _Setting, _error: ErrorDetails, profile_model: ProfileModel) -> Fault:
    path = (*setting.path, "name")
    node, _ = tree.nearest(path)
    plain = _dotted(tuple(step for step in setting.path if isinstance(step, str)))
    names = list(dict.fromkeys([*kinds_of(setting.annotation), *profile_model.installed.get(plain, [])]))
    message = f"{_dotted(path)}: found {_value_in_words(node.plain())}, expected one of {', '.join(names)}"
    hint = _did_you_mean(str(node.plain()), names) or "other kinds need an installed plug-in package"
    return node.place.fault(message, key=_dotted(path), hint=hint)


def _broken_rule(tree: Tree, setting: _Setting, error: ErrorDetails, _profile_model: ProfileModel) -> Fault:
    """Return the fault of a rule for several settings, at the first key in the rule's message."""
    message = str(error.get("ctx", {}).get("error", error["msg"]))
    section, depth = tree.nearest(setting.path)
    for word in re.findall(r"[A-Za-z_][\w.]*\w", message):
        path = tuple(int(part) if part.isdigit() else part for part in word.split("."))
        node, inside = section.nearest(path)
        if depth == len(setting.path) and inside == len(path):
            key = _dotted((*setting.path, *path))
            break
    else:
        node, key = section, _dotted(setting.path[:depth])
    prefix = f"{_dotted(setting.path)}: " if setting.path else ""
    return node.place.fault(prefix + message, key=key)


_FAULT_MAKERS: dict[str, Callable[[Tree, _Setting, ErrorDetails, ProfileModel], Fault] | None] = {
    "extra_forbidden": None,
    "union_tag_not_found": None,
    "missing": _missing,
    "union_tag_invalid": _unknown_kind,
    "value_error": _broken_rule,
    "assertion_error": _broken_rule,
}
