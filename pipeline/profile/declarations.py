"""Describe the declaration of a setting: its groups and kinds, and its valid values in words.

For error messages, hints and the profile's reference. The functions read the annotations of a pydantic model
and refer to no setting by name.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_SINGULAR = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Any: "any value"}
_PLURAL = {bool: "true or false", int: "whole numbers", float: "numbers", str: "text", Any: "any values"}


def split_annotated(annotation: Any, metadata: Sequence[Any] = ()) -> tuple[Any, list[Any]]:
    """Return an annotation without `Annotated`, and its constraints."""
    constraints = list(metadata)
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        for item in more:
            constraints += item.metadata if isinstance(item, FieldInfo) else [item]
    return annotation, constraints


def alternatives(annotation: Any) -> tuple[list[Any], bool]:
    """Return the alternatives of an annotation other than null, and whether null is allowed."""
    annotation, _ = split_annotated(annotation)
    if get_origin(annotation) not in (Union, types.UnionType):
        return [annotation], False
    members = [member for member in get_args(annotation) if member is not type(None)]
    return members, len(members) < len(get_args(annotation))


def group_model(annotation: Any) -> type[BaseModel] | None:
    """Return the model if the annotation is a group of settings, else None."""
    members, _ = alternatives(annotation)
    if len(members) != 1:
        return None
    only, _ = split_annotated(members[0])
    return only if isinstance(only, type) and issubclass(only, BaseModel) else None


def kinds_of(annotation: Any) -> dict[str, type[BaseModel]]:
    """Return the kinds that the key `name` selects, by name; empty if the annotation is not such a choice."""
    members, _ = alternatives(annotation)
    models = [group_model(member) for member in members]
    if len(models) < 2:
        return {}
    result: dict[str, type[BaseModel]] = {}
    for model in models:
        if model is None or "name" not in model.model_fields:
            return {}
        result.update(dict.fromkeys(kind_names(model), model))
    return result


def kind_names(model: type[BaseModel]) -> list[str]:
    """Return the names that select this group: the literals of its field `name`."""
    annotation = model.model_fields["name"].annotation
    return [str(name) for name in get_args(annotation)] if get_origin(annotation) is Literal else []


def entry_type(annotation: Any) -> Any:
    """Return the annotation of a list's entries or of a mapping's values; None if it is neither."""
    members, _ = alternatives(annotation)
    only, _ = split_annotated(members[0]) if len(members) == 1 else (None, [])
    if get_origin(only) in (list, tuple, set, frozenset, dict) and get_args(only):
        arguments = get_args(only)
        return arguments[1] if get_origin(only) is dict else arguments[0]
    return None


def subgroups(
    model: type[BaseModel], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str, type[BaseModel]]]:
    """Yield every group of settings in `model`, itself first: path, name of the kind (or ""), class."""
    yield path, "", model
    for key, info in model.model_fields.items():
        here = (*path, key)
        annotation = entry_type(info.annotation) or info.annotation
        for kind in dict.fromkeys(kinds_of(annotation).values()):
            names = " or ".join(kind_names(kind))
            yield from ((p, names if p == here else n, m) for p, n, m in subgroups(kind, here))
        inner = group_model(annotation)
        if inner is not None:
            yield from subgroups(inner, here)


def expected_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Return the valid values of an annotation in words; empty for an unknown type.

    Example: "a whole number of at least 0".
    """
    members, null = alternatives(annotation)
    if kinds_of(annotation):
        members = [split_annotated(annotation)[0]]
    _, metadata = split_annotated(annotation, metadata)
    parts = [_expected_text_of(member, metadata) for member in members]
    if not all(parts):
        return ""
    if not null:
        return " or ".join(parts)
    return f"{' or '.join(parts)}{',' if ' ' in parts[-1] else ''} or null"


def _expected_text_of(annotation: Any, metadata: Sequence[Any]) -> str:
    annotation, metadata = split_annotated(annotation, metadata)
    by_name = kinds_of(annotation)
    if by_name:
        return f"a group of keys with a name: one of {', '.join(by_name)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a group of keys"
    if get_origin(annotation) is Literal:
        values = [value_text(value) for value in get_args(annotation)]
        return values[0] if len(values) == 1 else "one of " + ", ".join(values)
    if annotation is dict or get_origin(annotation) is dict:
        return "a group of keys"
    if annotation is list or get_origin(annotation) in (list, tuple):
        return f"a list of {_entries_in_words(entry_type(annotation))}{_count(metadata)}"
    if annotation not in _SINGULAR:
        return ""
    form = _bound(metadata, "pattern")
    if form is not None:
        return f"text of the form {form}"
    if annotation is str and _bound(metadata, "min_length"):
        return "text that is not empty"
    return f"{_SINGULAR[annotation]} {range_text(metadata)}".rstrip()


def _entries_in_words(annotation: Any) -> str:
    annotation, metadata = split_annotated(annotation)
    if annotation in _PLURAL:
        return f"{_PLURAL[annotation]} {range_text(metadata)}".rstrip()
    if get_origin(annotation) is Literal:
        return ", ".join(value_text(value) for value in get_args(annotation))
    if annotation is None:
        return "values"
    return "entries" if not kinds_of(annotation) else "groups of keys, each with a name"


def _count(metadata: Sequence[Any]) -> str:
    least, most = _bound(metadata, "min_length"), _bound(metadata, "max_length")
    if least and least == most:
        return f", {least} of them"
    words = [f"at least {least}"] if least else []
    words += [f"at most {most}"] if most is not None else []
    return f", {' and '.join(words)} of them" if words else ""


def range_text(metadata: Sequence[Any]) -> str:
    """Return the range in words, such as "of at least 0 and below 1"; empty if there is none."""
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


def value_text(value: Any) -> str:
    """Return a value as YAML text, cut to 60 characters; text without a space has no quotes."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.isprintable() and value and " " not in value:
        text = value
    else:
        text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"
