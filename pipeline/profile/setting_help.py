"""What a setting takes, in words: for faults, for the profile's reference, for hints.

Reads the declarations of a pydantic model; knows no setting by name.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_ONE = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Any: "any value"}
_MANY = {bool: "true or false", int: "whole numbers", float: "numbers", str: "text", Any: "any values"}


def split(annotation: Any, metadata: Sequence[Any] = ()) -> tuple[Any, list[Any]]:
    """An annotation without `Annotated`, and its constraints."""
    constraints = list(metadata)
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        for item in more:
            constraints += item.metadata if isinstance(item, FieldInfo) else [item]
    return annotation, constraints


def choices(annotation: Any) -> tuple[list[Any], bool]:
    """The alternatives of an annotation besides null, and whether null is one."""
    annotation, _ = split(annotation)
    if get_origin(annotation) not in (Union, types.UnionType):
        return [annotation], False
    members = [member for member in get_args(annotation) if member is not type(None)]
    return members, len(members) < len(get_args(annotation))


def group(annotation: Any) -> type[BaseModel] | None:
    """The model, if the annotation is one group of settings."""
    members, _ = choices(annotation)
    if len(members) != 1:
        return None
    only, _ = split(members[0])
    return only if isinstance(only, type) and issubclass(only, BaseModel) else None


def kinds(annotation: Any) -> dict[str, type[BaseModel]]:
    """By name, the groups among which the key `name` chooses; empty if the annotation is no such choice."""
    members, _ = choices(annotation)
    models = [group(member) for member in members]
    if len(models) < 2:
        return {}
    result: dict[str, type[BaseModel]] = {}
    for model in models:
        if model is None or "name" not in model.model_fields:
            return {}
        result.update(dict.fromkeys(names_of(model), model))
    return result


def names_of(model: type[BaseModel]) -> list[str]:
    """The names that choose this group: the literals of its field `name`."""
    annotation = model.model_fields["name"].annotation
    return [str(name) for name in get_args(annotation)] if get_origin(annotation) is Literal else []


def entry(annotation: Any) -> Any:
    """The annotation of a list's entries or of a mapping's values; None if it is neither."""
    members, _ = choices(annotation)
    only, _ = split(members[0]) if len(members) == 1 else (None, [])
    if get_origin(only) in (list, tuple, set, frozenset, dict) and get_args(only):
        arguments = get_args(only)
        return arguments[1] if get_origin(only) is dict else arguments[0]
    return None


def subgroups(
    model: type[BaseModel], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str, type[BaseModel]]]:
    """Every group of settings in `model`, itself first: path, name of the kind (or ""), class."""
    yield path, "", model
    for key, info in model.model_fields.items():
        here = (*path, key)
        annotation = entry(info.annotation) or info.annotation
        for kind in dict.fromkeys(kinds(annotation).values()):
            named = " or ".join(names_of(kind))
            yield from ((p, named if p == here else n, m) for p, n, m in subgroups(kind, here))
        inner = group(annotation)
        if inner is not None:
            yield from subgroups(inner, here)


def expected(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What goes there, in words: "a whole number of at least 0". Empty for a type unknown here."""
    members, null = choices(annotation)
    if kinds(annotation):
        members = [split(annotation)[0]]
    _, metadata = split(annotation, metadata)
    parts = [_expected_one(member, metadata) for member in members]
    if not all(parts):
        return ""
    if not null:
        return " or ".join(parts)
    return f"{' or '.join(parts)}{',' if ' ' in parts[-1] else ''} or null"


def _expected_one(annotation: Any, metadata: Sequence[Any]) -> str:
    annotation, metadata = split(annotation, metadata)
    named = kinds(annotation)
    if named:
        return f"a group of keys with a name: one of {', '.join(named)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a group of keys"
    if get_origin(annotation) is Literal:
        values = [shown(value) for value in get_args(annotation)]
        return values[0] if len(values) == 1 else "one of " + ", ".join(values)
    if annotation is dict or get_origin(annotation) is dict:
        return "a group of keys"
    if annotation is list or get_origin(annotation) in (list, tuple):
        return f"a list of {_entries_in_words(entry(annotation))}{_count(metadata)}"
    if annotation not in _ONE:
        return ""
    form = _bound(metadata, "pattern")
    if form is not None:
        return f"text of the form {form}"
    if annotation is str and _bound(metadata, "min_length"):
        return "text that is not empty"
    return f"{_ONE[annotation]} {limits(metadata)}".rstrip()


def _entries_in_words(annotation: Any) -> str:
    annotation, metadata = split(annotation)
    if annotation in _MANY:
        return f"{_MANY[annotation]} {limits(metadata)}".rstrip()
    if get_origin(annotation) is Literal:
        return ", ".join(shown(value) for value in get_args(annotation))
    if annotation is None:
        return "values"
    return "entries" if not kinds(annotation) else "groups of keys, each with a name"


def _count(metadata: Sequence[Any]) -> str:
    least, most = _bound(metadata, "min_length"), _bound(metadata, "max_length")
    if least and least == most:
        return f", {least} of them"
    words = [f"at least {least}"] if least else []
    words += [f"at most {most}"] if most is not None else []
    return f", {' and '.join(words)} of them" if words else ""


def limits(metadata: Sequence[Any]) -> str:
    """The range: "of at least 0 and below 1"; empty if there is none."""
    ge, gt = _bound(metadata, "ge"), _bound(metadata, "gt")
    le, lt = _bound(metadata, "le"), _bound(metadata, "lt")
    if ge is not None and le is not None:
        return f"from {_number(ge)} to {_number(le)}"
    words = []
    if ge is not None:
        words.append(f"of at least {_number(ge)}")
    if gt is not None:
        words.append(f"above {_number(gt)}")
    if le is not None:
        words.append(f"of at most {_number(le)}" if not words else f"at most {_number(le)}")
    if lt is not None:
        words.append(f"below {_number(lt)}")
    return " and ".join(words)


def _bound(metadata: Sequence[Any], name: str) -> Any:
    for item in metadata:
        value = getattr(item, name, None)
        if value is not None:
            return value
    return None


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def shown(value: Any) -> str:
    """A value as it stands in a profile, cut to 60 characters; text without a space as it is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.isprintable() and value and " " not in value:
        text = value
    else:
        text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"
