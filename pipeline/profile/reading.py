"""Read and validate a profile that is not cached: files, layers, overrides. Imports pydantic and yaml."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.errors import Fault, ProfileError
from pipeline.profile.declarations import group_model
from pipeline.profile.faults import validated
from pipeline.profile.files import ProfileFiles
from pipeline.profile.layers import Layers, overridden, parse_overrides
from pipeline.profile.profile_model import built_in_model, model_for
from pipeline.profile.yaml_tree import SourcePlace, Tree


@dataclass(frozen=True)
class Reading:
    """A valid profile.

    Attributes:
        sections: Every top-level section by name, JSON-ready, every default written out.
        keyed: The same without the settings that change no artefact.
        places: By dotted key, where a value was set.
        contents: By path, what was read; the profile itself comes first.
        absent: Paths without a file at which a file would have been read.
        plugins: Whether installed packages declare some of the settings.
    """

    sections: dict[str, Any]
    keyed: dict[str, Any]
    places: dict[str, str]
    contents: dict[Path, bytes]
    absent: list[str]
    plugins: bool


def read_profile(path: Path, overrides: Sequence[str], files: ProfileFiles) -> Reading:
    """Read and validate a profile.

    Args:
        path: The profile's file.
        overrides: `KEY=VALUE` with dotted keys, applied in order.
        files: Where the files are read from.

    Raises:
        ProfileError: The profile is invalid; with all faults.
        UsageError: The file cannot be read.
    """
    layers = Layers(files)
    tree = layers.tree(path)
    if not layers.readable:
        raise ProfileError(_in_order([*layers.faults, *parse_overrides(overrides)[1]], layers))
    if "name" not in tree.value:
        tree.value["name"] = Tree(name_from(path), SourcePlace("default"), SourcePlace("default"))
    tree, faults = overridden(tree, overrides, default_value)
    profile_model = model_for(tree)
    faults = [*layers.faults, *faults, *profile_model.faults]
    profile, invalid = validated(tree, profile_model, json.dumps(tree.plain()))
    # A plug-in that cannot be used is one fault, not also an unknown name.
    reported = {fault.key for fault in profile_model.faults}
    faults += [fault for fault in invalid if fault.key not in reported]
    if faults or profile is None:
        raise ProfileError(_in_order(faults, layers))
    sections = profile.model_dump(mode="json")
    return Reading(
        sections=sections,
        keyed=_keyed(profile, sections),
        places=_places(tree),
        contents=layers.contents,
        absent=[str(name) for name in layers.absent],
        plugins=profile_model.plugins,
    )


def typed(sections: Mapping[str, Any]) -> BaseModel:
    """Return the sections of a valid profile as one typed object."""
    model = model_for(_tree_of(dict(sections))).model
    return model.model_validate_json(json.dumps(dict(sections)), strict=True)


def default_value(path: tuple[str, ...]) -> Any:
    """Return the default, JSON-ready, of the setting at a path of the profile; None if it has none."""
    annotation: Any = built_in_model()
    value: Any = None
    for part in path:
        model = group_model(annotation)
        if model is None or part not in model.model_fields:
            return None
        info = model.model_fields[part]
        annotation = info.annotation
        value = None if info.is_required() else info.get_default(call_default_factory=True)
    return _json_ready(value)


def name_from(path: Path) -> str:
    """Return the default name of a profile: its file's, without the characters that are not allowed."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-") or "profile"


def _json_ready(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [_json_ready(entry) for entry in value] if isinstance(value, list) else value


def _tree_of(value: Any) -> Tree:
    place = SourcePlace("default")
    if isinstance(value, dict):
        return Tree({key: _tree_of(inner) for key, inner in value.items()}, place)
    if isinstance(value, list):
        return Tree([_tree_of(inner) for inner in value], place)
    return Tree(value, place)


def _keyed(value: Any, plain: Any) -> Any:
    """Return `plain`, the JSON-ready form of `value`, without the settings declared keyed=False."""
    if isinstance(value, BaseModel):
        return {
            name: _keyed(getattr(value, name), plain[name])
            for name, info in type(value).model_fields.items()
            if not (isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("keyed") is False)
        }
    if isinstance(value, list | tuple):
        return [_keyed(inner, plain[index]) for index, inner in enumerate(value)]
    if isinstance(value, dict):
        return {key: _keyed(inner, plain[key]) for key, inner in value.items() if key in plain}
    return plain


def _places(tree: Tree) -> dict[str, str]:
    """Return by dotted key where each value was set."""
    places = {}
    for path, inner in tree.walk():
        place = inner.set_at
        if place.line or place.file.startswith("--set"):
            places[".".join(map(str, path))] = str(place) if place.line else "--set"
    return places


def _in_order(faults: Iterable[Fault], layers: Layers) -> list[Fault]:
    """Sort faults by file in the order of reading, then by line, overrides last; drop duplicates."""
    files = [str(path) for path in layers.contents]

    def rank(fault: Fault) -> tuple[int, int, int]:
        position = files.index(fault.file) if fault.file in files else len(files)
        return position, fault.line, fault.column

    return sorted(dict.fromkeys(faults), key=rank)
