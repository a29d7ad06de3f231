"""Generate the profile's JSON Schema and reference page from the declarations of its settings.

`make schema` runs this module, which writes `kdpipe.schema.json` and `docs/reference/profile.md`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.json_files import json_text
from pipeline.profile.declarations import (
    entry_type,
    expected_text,
    group_model,
    kind_names,
    kinds_of,
    subgroups,
    value_text,
)
from pipeline.profile.profile_model import built_in_model
from pipeline.profile.showing import show

__all__ = ["profile_reference", "schema", "schema_text", "show"]

_NAME_DEFAULT = "the file's name"
_EXTENDS = "profiles that this one builds on: paths relative to this file, or names of shipped profiles"


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a profile without plug-ins."""
    model = built_in_model()
    raw = model.model_json_schema()
    definitions = raw["$defs"]
    for inner in dict.fromkeys(inner for _, _, inner in subgroups(model)):
        target = _object(raw if inner is model else definitions[inner.__name__])
        _tidy(target, inner)
    properties = raw["properties"]
    del properties["name"]["default"]
    properties["name"]["description"] += f" (default: {_NAME_DEFAULT})"
    name = {"type": "string", "minLength": 1}
    extends = {"description": _EXTENDS, "anyOf": [name, {"type": "array", "items": name, "minItems": 1}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "kdpipe profile",
        "description": raw["description"],
        "type": "object",
        "additionalProperties": False,
        "properties": {"extends": extends, **properties},
        # A required key may also be in a profile that this one extends.
        "if": {"not": {"required": ["extends"]}},
        "then": _take_required(model, raw),
        "$defs": definitions,
    }


def schema_text() -> str:
    """Return the content of `kdpipe.schema.json`."""
    return json_text(schema())


def _object(definition: dict[str, Any]) -> dict[str, Any]:
    """Return the alternative of a definition that is a mapping, not a short form."""
    full: dict[str, Any] = definition["anyOf"][-1] if "anyOf" in definition else definition
    return full


def _tidy(definition: dict[str, Any], model: type[BaseModel]) -> None:
    """Delete titles made from names, add units to the text that editors show, and add missing defaults."""
    names = kind_names(model) if "name" in model.model_fields else []
    definition.pop("title", None)
    if names:
        definition["title"] = ", ".join(names)
    for key, info in model.model_fields.items():
        described = definition["properties"][key]
        described.pop("title", None)
        described.pop("keyed", None)
        for part in (described, described.get("items", {})):
            part.pop("discriminator", None)
        if "unit" in described:
            described["description"] = f"{described.get('description', '')} [{described['unit']}]".lstrip()
        if info.default_factory is not None and group_model(info.annotation) is None:
            described["default"] = _plain_default(info)


def _take_required(model: type[BaseModel], raw: dict[str, Any]) -> dict[str, Any]:
    """Move `required` from the root and its groups (not from entries of lists) into one condition."""
    properties: dict[str, Any] = {}
    for key, info in model.model_fields.items():
        by_name = kinds_of(info.annotation)
        inner = group_model(info.annotation)
        if by_name:
            raw["properties"][key]["anyOf"] = raw["properties"][key].pop("oneOf")
            required = ["name"]
        elif inner is not None:
            required = [name for name, field in inner.model_fields.items() if field.is_required()]
        else:
            continue
        for group in dict.fromkeys(by_name.values() if inner is None else [inner]):
            raw["$defs"][group.__name__].pop("required", None)
        if required:
            properties[key] = {"required": required}
    return {"required": raw.pop("required"), "properties": properties}


def profile_reference() -> str:
    """Return the content of `docs/reference/profile.md`: every section and every key."""
    model = built_in_model()
    lines = [_INTRODUCTION, "## Top level", ""]
    plain = [key for key, info in model.model_fields.items() if not _groups_of(info.annotation)]
    lines += [*_HEAD, f"| `extends` | text, or a list of them |  | null | {_EXTENDS} |"]
    lines += [_row(model, key, default=_NAME_DEFAULT if key == "name" else "") for key in plain]
    sections = [key for key in model.model_fields if key not in plain]
    lines += ["", "Sections: " + ", ".join(f"[{key}](#{key})" for key in sections) + ".", ""]
    described: dict[type[BaseModel], str] = {}
    for key in sections:
        lines += _section(model.model_fields[key], key, described)
    return "\n".join(lines).rstrip() + "\n"


_HEAD = ["| key | takes | unit | default | meaning |", "| --- | --- | --- | --- | --- |"]

_INTRODUCTION = """# The profile

`make schema` generates this page from the declarations of the settings; edit those instead.

A profile is one YAML file. `kdpipe show PROFILE` prints it with every value written out, `kdpipe schema`
prints its JSON Schema. For completion and checks while you type, begin it with
`# yaml-language-server: $schema=../kdpipe.schema.json`.

* An unknown key or an invalid value is a fault. kdpipe reports all faults at once, with file, line and
  column.
* YAML 1.2: `1e-3` is a number; `on`, `off`, `yes` and `no` are text; a duplicate key is a fault.
* `extends: other.yaml` (or a list; the later one wins) builds on other profiles. Groups of keys are
  merged, lists and single values replaced. Where a group's `name` changes (`data.name`), the group
  is replaced as a whole.
* `--set KEY=VALUE` replaces one value: `--set distill.epochs=5`, `--set distill.methods.0.weight=0.5`
  or `--set targets=[onnxruntime-fp32]`. The value is YAML.
* A key marked † is not part of an artefact's key: it does not affect the result (`data.workers`), or it is a
  path, and only the content of the files counts.
"""


def _groups_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the groups of settings at an annotation or in the entries of its list."""
    annotation = entry_type(annotation) or annotation
    inner = group_model(annotation)
    return [inner] if inner else list(dict.fromkeys(kinds_of(annotation).values()))


def _shared() -> list[type[BaseModel]]:
    """Return the groups that more than one section has."""
    groups = [group_model(info.annotation) for info in built_in_model().model_fields.values()]
    return [model for model in groups if model is not None and groups.count(model) > 1]


def _section(info: FieldInfo, path: str, described: dict[type[BaseModel], str]) -> Iterator[str]:
    groups = _groups_of(info.annotation)
    deep = "#" * (2 + path.count("."))
    yield from (f"{deep} {path}", "")
    alike = described.get(groups[0])
    if len(groups) == 1 and alike:
        yield from (f"{_sentence(info.description)} The same keys as [{alike}](#{_anchor(alike)}).", "")
        return
    sentences = [_sentence(info.description)]
    if len(groups) == 1:
        sentences = [*(sentences if groups[0] in _shared() else []), _sentence(groups[0].__doc__)]
    if entry_type(info.annotation):
        default = "" if info.is_required() else f", by default `{_default_text(info)}`"
        form = "A mapping by name" if get_origin(info.annotation) is dict else "A list"
        sentences.append(f"{form}{default}. Each entry has:")
    yield from (" ".join(sentences), "")
    if len(groups) == 1:
        described[groups[0]] = path
        yield from _table(groups[0], list(groups[0].model_fields), path, described)
        return
    common = [key for key in groups[0].model_fields if all(key in other.model_fields for other in groups)]
    common.remove("name")
    names = ", ".join(f"`{name}`" for kind in groups for name in kind_names(kind))
    yield from (f"`name` (required) selects the kind: {names}. Every kind has:", "")
    yield from _table(groups[0], common, path, described)
    for kind in groups:
        yield from (f"{deep}# {path}: {', '.join(kind_names(kind))}", "", _sentence(kind.__doc__), "")
        own = [key for key in kind.model_fields if key not in common and key != "name"]
        if own:
            yield from _table(kind, own, path, described)


def _table(
    model: type[BaseModel], keys: list[str], path: str, described: dict[type[BaseModel], str]
) -> Iterator[str]:
    inner = [key for key in keys if _groups_of(model.model_fields[key].annotation)]
    yield from _HEAD
    for key in keys:
        yield _row(
            model, key, default=f"see [{path}.{key}](#{_anchor(f'{path}.{key}')})" if key in inner else ""
        )
    yield ""
    for key in inner:
        yield from _section(model.model_fields[key], f"{path}.{key}", described)


def _row(model: type[BaseModel], key: str, default: str = "") -> str:
    info = model.model_fields[key]
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    mark = " †" if extra.get("keyed") is False else ""
    takes = expected_text(info.annotation, info.metadata)
    head, form, pattern = takes.partition("of the form ")
    takes = head + form + (f"`{pattern}`" if form else "")
    default = default or ("**required**" if info.is_required() else f"`{_default_text(info)}`")
    cells = [f"`{key}`{mark}", takes, str(extra.get("unit", "")), default, info.description or ""]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _plain_default(info: FieldInfo) -> Any:
    value = info.get_default(call_default_factory=True)
    if isinstance(value, list):
        return [entry.model_dump(mode="json") if isinstance(entry, BaseModel) else entry for entry in value]
    return value


def _default_text(info: FieldInfo) -> str:
    value = _plain_default(info)
    return value_text(value) if not isinstance(value, list | dict) else json.dumps(value)


def _sentence(text: str | None) -> str:
    text = " ".join((text or "").split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "…", ":")) else ".")


def _anchor(heading: str) -> str:
    return heading.replace(".", "").lower()


def main() -> None:
    """Write the generated files of a checkout."""
    root = Path(__file__).resolve().parent.parent.parent
    (root / "kdpipe.schema.json").write_text(schema_text(), encoding="utf-8")
    (root / "docs" / "reference" / "profile.md").write_text(profile_reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
