"""The profile's typed model, with the kinds of data and the methods that installed packages add.

A package adds one through an entry point of the group `kdpipe.data` or `kdpipe.methods` whose name is
the kind's name in profiles and whose value names its settings class. Looking for entry points takes
longer than all the rest of loading, so it is done only for a name that is not built in.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from pipeline import plugins
from pipeline.errors import Fault
from pipeline.profile.setting_help import entry, kinds, names_of
from pipeline.profile.yaml_tree import Tree
from stages import PROFILE_SETTINGS

GROUPS = {"kdpipe.data": "data", "kdpipe.methods": "distill.methods"}
"""By entry-point group, the key of the profile whose kinds it extends."""


@dataclass
class Kinds:
    """The model for one profile. `installed`: by key of the profile, the names plug-ins offer, as far
    as they were looked for; `plugins`: whether a plug-in's class is in the model."""

    model: type[BaseModel]
    installed: dict[str, list[str]] = field(default_factory=dict)
    plugins: bool = False
    faults: list[Fault] = field(default_factory=list)


@functools.cache
def built_in() -> type[BaseModel]:
    """The profile's model without plug-ins."""
    return _make((), ())


def kinds_for(tree: Tree) -> Kinds:
    """The model for the profile `tree`: with the plug-ins that it names, if it names any."""
    result = Kinds(built_in())
    found: dict[str, tuple[type[BaseModel], ...]] = {}
    for group, key in GROUPS.items():
        known = choice(result.model, key)
        wanted = {tree.value: tree for tree in _named(tree, key) if tree.value not in known}
        if wanted:
            found[group] = _plugins(group, key, wanted, known, result)
    if any(found.values()):
        result.plugins = True
        result.model = _make(found.get("kdpipe.data", ()), found.get("kdpipe.methods", ()))
    return result


def choice(model: type[BaseModel], key: str) -> dict[str, type[BaseModel]]:
    """By name, the classes among which the group at a dotted key of the profile chooses."""
    annotation: Any = model
    for part in key.split("."):
        annotation = annotation.model_fields[part].annotation
    return kinds(entry(annotation) or annotation)


def _make(data: tuple[type[BaseModel], ...], methods: tuple[type[BaseModel], ...]) -> type[BaseModel]:
    model: type[BaseModel] = plugins.imported(PROFILE_SETTINGS)(data, methods)
    return model


def _named(tree: Tree, key: str) -> Iterator[Tree]:
    """The values of `name` in the group at a dotted key, or in each entry of the list there."""
    path = tuple(key.split("."))
    place, depth = tree.nearest(path)
    if depth < len(path):
        return
    for group in place.value if isinstance(place.value, list) else [place]:
        name = group.value.get("name") if isinstance(group.value, dict) else None
        if name is not None and isinstance(name.value, str):
            yield name


def _plugins(
    group: str, key: str, wanted: dict[str, Tree], known: dict[str, type[BaseModel]], result: Kinds
) -> tuple[type[BaseModel], ...]:
    points = plugins.installed(group)
    result.installed[key] = list(points)
    classes: list[type[BaseModel]] = []
    for name, said in wanted.items():
        point = points.get(name)
        if point is None:
            continue  # validation says that the name is unknown, and which there are
        try:
            kind = plugins.load(point)
            why = _unfit(kind, name, known)
        except ImportError as error:
            kind, why = None, str(error)
        if why:
            owner = plugins.owner(point)
            message = f"{key}: the plug-in {name!r} of {owner} cannot be used: {point.value}: {why}"
            hint = "repair or uninstall that package"
            result.faults.append(said.place.fault(message, key=f"{key}.name", hint=hint))
        elif kind not in classes:
            classes.append(kind)
    return tuple(classes)


def _unfit(kind: Any, name: str, known: dict[str, type[BaseModel]]) -> str:
    """Why a plug-in's class cannot stand beside the built-in ones; empty if it can."""
    first = next(iter(known.values()))
    base = next(one for one in first.__mro__[1:] if all(issubclass(other, one) for other in known.values()))
    if not (isinstance(kind, type) and issubclass(kind, base) and issubclass(kind, BaseModel)):
        return f"it is not a subclass of {base.__module__}.{base.__qualname__}"
    if "name" not in kind.model_fields or name not in names_of(kind):
        return f'its field `name` is not Literal["{name}"]'
    taken = [other for other in names_of(kind) if other in known]
    return f"the name {taken[0]!r} is taken" if taken else ""
