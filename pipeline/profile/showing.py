"""Print a loaded profile as YAML with every value; a comment shows where a value was set."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from pipeline.profile.loading import LoadedProfile
from pipeline.profile.reading import typed

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_NOT_TEXT = {"true", "false", "null"}


def show(loaded: LoadedProfile) -> str:
    """Return a profile as YAML that loads to the same sections, in the same order.

    A comment after each value that differs from its default shows where it was set: `# FILE:LINE` or `#
    --set`.
    """
    lines = _group(loaded, "", typed(loaded.sections), dict(loaded.sections), "")
    return "\n".join(lines) + "\n"


def _entry(
    loaded: LoadedProfile, indent: str, label: str, value: Any, plain: Any, path: str
) -> Iterator[str]:
    """Yield the lines of `label: value`, nested ones included; `value` is the typed form of `plain`."""
    if isinstance(plain, dict) and plain:
        yield f"{indent}{scalar(label)}:{_comment(loaded, path) if not isinstance(value, BaseModel) else ''}"
        yield from _group(loaded, indent + "  ", value, plain, path)
    elif isinstance(plain, list) and any(isinstance(inner, dict) for inner in plain):
        yield f"{indent}{scalar(label)}:"
        for index, inner in enumerate(plain):
            typed_inner = value[index] if isinstance(value, list | tuple) else inner
            here = f"{path}.{index}"
            if isinstance(inner, dict) and inner:
                below = list(_group(loaded, indent + "    ", typed_inner, inner, here))
                yield f"{indent}  - {below[0].lstrip()}"
                yield from below[1:]
            else:
                yield f"{indent}  - {_flow(inner)}"
    else:
        yield f"{indent}{scalar(label)}: {_flow(plain)}{_comment(loaded, path)}"


def _group(loaded: LoadedProfile, indent: str, value: Any, plain: dict[str, Any], path: str) -> Iterator[str]:
    for key in sorted(plain, key=lambda key: key != "name"):
        inner, here = plain[key], f"{path}.{key}" if path else key
        if not isinstance(value, BaseModel):
            yield from _entry(loaded, indent, key, None, inner, here)
            continue
        lines = list(_entry(loaded, indent, key, getattr(value, key), inner, here))
        if _is_default(value, key):
            lines[0] = lines[0].removesuffix(_comment(loaded, here))
        yield from lines


def _is_default(group: BaseModel, key: str) -> bool:
    default: object = type(group).model_fields[key].get_default(call_default_factory=True)
    return bool(default == getattr(group, key))


def _comment(loaded: LoadedProfile, path: str) -> str:
    """Return `  # FILE:LINE` of the key or, for a short form, of the value that replaces its group."""
    place = loaded.place(path)
    if place == "default" and path.endswith(".name"):
        place = loaded.place(path.removesuffix(".name"))
    if place == "default":
        return ""
    place = place if place == "--set" else place.rpartition(":")[0]
    return "  # " + "".join(sign if sign.isprintable() else "?" for sign in place)


def _flow(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_flow(inner) for inner in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{scalar(key)}: {_flow(inner)}' for key, inner in value.items())}}}"
    return scalar(value)


def scalar(value: Any) -> str:
    """Return a scalar in YAML; text has no quotes only if it cannot be read as anything else."""
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return value
    return "".join(_escaped(sign) for sign in json.dumps(value, ensure_ascii=False))


def _escaped(sign: str) -> str:
    if sign.isprintable():
        return sign
    code = ord(sign)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
