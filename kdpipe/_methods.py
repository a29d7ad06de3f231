"""The distillation methods and their settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True)
class Setting:
    """A setting of a method.

    Attributes:
        name: The key below `distill.methods`.
        default: The value if it is not set.
        expected: The values that it takes, in words.
        unit: The unit of the value, if it has one.
        help: What it does.
    """

    name: str
    default: Any
    expected: str
    unit: str
    help: str


@dataclass(frozen=True)
class Method:
    """A distillation method.

    Attributes:
        name: The name in profiles.
        summary: What it does, in one line.
        settings: Its settings, by name.
        package: The installed package that adds it; empty for a built-in method.
    """

    name: str
    summary: str
    settings: dict[str, Setting] = field(repr=False)
    package: str = ""


def installed_methods() -> list[Method]:
    """List the built-in methods, and those of installed packages that can be loaded."""
    from pipeline import plugins
    from pipeline.profile.profile_model import built_in_model, kinds_at

    methods = [_method(name, model) for name, model in kinds_at(built_in_model(), "distill.methods").items()]
    names = {method.name for method in methods}
    for name, point in plugins.installed("kdpipe.methods").items():
        try:
            model = plugins.load(point)
        except ImportError:
            continue  # `kdpipe doctor` and a profile that uses it report why
        if name not in names and hasattr(model, "model_fields"):
            methods.append(_method(name, model, plugins.owner(point)))
    return methods


def _method(name: str, model: type[BaseModel], package: str = "") -> Method:
    from pipeline.profile.declarations import expected_text

    settings = {}
    for key, info in model.model_fields.items():
        if key == "name":
            continue
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        settings[key] = Setting(
            name=key,
            default=info.get_default(call_default_factory=True),
            expected=expected_text(info.annotation, info.metadata),
            unit=str(extra.get("unit") or ""),
            help=info.description or "",
        )
    summary = (model.__doc__ or "").strip().partition("\n")[0]
    return Method(name, summary, settings, package)
