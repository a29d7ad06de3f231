"""Build the profile's typed model, with the kinds of data and the methods that installed packages add.

A package adds one through an entry point of the group `kdpipe.data` or `kdpipe.methods`. The entry point's
name is the kind's name in profiles, and its value is the settings class. Looking for entry points takes
longer than everything else in loading, so it happens only for a name that is not built in.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from pipeline import plugins
from pipeline.errors import Fault
from pipeline.profile.declarations import entry_type, kind_names, kinds_of
from pipeline.profile.yaml_tree import Tree
from stages import PROFILE_SETTINGS

GROUPS = {"kdpipe.data": "data", "kdpipe.methods": "distill.methods"}
"""By entry-point group, the key in the profile whose kinds it extends."""


@dataclass
class ProfileModel:
    """The typed model for one profile.

    Attributes:
        model: The model.
        installed: By key in the profile, the names of installed plug-ins, for the keys that were looked up.
        plugins: Whether a plug-in's class is in the model.
        faults: The plug-ins that cannot be used.
    """

    model: type[BaseModel]
    installed: dict[str, list[str]] = field(default_factory=dict)
    plugins: bool = False
    faults: list[Fault] = field(default_factory=list)


@functools.cache
def built_in_model() -> type[BaseModel]:
    """Return the profile's model without plug-ins."""
    return _make((), ())


def model_for(tree: Tree) -> ProfileModel:
    """Return the model for a profile, with the plug-ins that the profile names."""
    result = ProfileModel(built_in_model())
    classes: dict[str, tuple[type[BaseModel], ...]] = {}
    for group, key in GROUPS.items():
        known = kinds_at(result.model, key)
        unknown = {name.value: name for name in _names_at(tree, key) if name.value not in known}
        if unknown:
            classes[group] = _plugins(group, key, unknown, known, result)
    if any(classes.values()):
        result.plugins = True
        result.model = _make(classes.get("kdpipe.data", ()), classes.get("kdpipe.methods", ()))
    return result


def kinds_at(model: type[BaseModel], key: str) -> dict[str, type[BaseModel]]:
    """Return the classes for the group at a dotted key of the profile, by the name that selects them."""
    annotation: Any = model
    for part in key.split("."):
        annotation = annotation.model_fields[part].annotation
    return kinds_of(entry_type(annotation) or annotation)


def _make(data: tuple[type[BaseModel], ...], methods: tuple[type[BaseModel], ...]) -> type[BaseModel]:
    model: type[BaseModel] = plugins.imported(PROFILE_SETTINGS)(data, methods)
    return model


def _names_at(tree: Tree, key: str) -> Iterator[Tree]:
    """Yield the values of `name` in the group at a dotted key, or in each entry of the list there."""
    path = tuple(key.split("."))
    place, depth = tree.nearest(path)
    if depth < len(path):
        return
    for group in place.value if isinstance(place.value, list) else [place]:
        name = group.value.get("name") if isinstance(group.value, dict) else None
        if name is not None and isinstance(name.value, str):
            yield name


def _plugins(
    group: str, key: str, unknown: dict[str, Tree], known: dict[str, type[BaseModel]], result: ProfileModel
) -> tuple[type[BaseModel], ...]:
    points = plugins.installed(group)
    result.installed[key] = list(points)
    classes: list[type[BaseModel]] = []
    for name, name_tree in unknown.items():
        point = points.get(name)
        if point is None:
            continue  # validation reports the unknown name and lists the known ones
        try:
            kind = plugins.load(point)
            why = _unfit(kind, name, known)
        except ImportError as error:
            kind, why = None, str(error)
        if why:
            owner = plugins.owner(point)
            message = f"{key}: the plug-in {name!r} of {owner} cannot be used: {point.value}: {why}"
            hint = "repair or uninstall that package"
            result.faults.append(name_tree.place.fault(message, key=f"{key}.name", hint=hint))
        elif kind not in classes:
            classes.append(kind)
    return tuple(classes)


def _unfit(kind: Any, name: str, known: dict[str, type[BaseModel]]) -> str:
    """Return why a plug-in's class cannot be used beside the built-in ones; empty if it can."""
    first = next(iter(known.values()))
    base = next(
        base for base in first.__mro__[1:] if all(issubclass(other, base) for other in known.values())
    )
    if not (isinstance(kind, type) and issubclass(kind, base) and issubclass(kind, BaseModel)):
        return f"it is not a subclass of {base.__module__}.{base.__qualname__}"
    if "name" not in kind.model_fields or name not in kind_names(kind):
        return f'its field `name` is not Literal["{name}"]'
    taken = [other for other in kind_names(kind) if other in known]
    return f"the name {taken[0]!r} is taken" if taken else ""
