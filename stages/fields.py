"""How a setting is declared: typed, with a default, a range, a unit and a line of help.

Light: imports pydantic alone. The schema, `docs/reference/profile.md`, validation and the help texts are
all made from these declarations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=False,
        allow_inf_nan=False,
        validate_default=True,
        protected_namespaces=(),
    )


class BrokenRules(ValueError):  # noqa: N818 - several errors in one
    """Several rules of a group of settings, all broken at once; each sentence names the key to blame."""

    def __init__(self, rules: Sequence[str]) -> None:
        super().__init__("; ".join(rules))
        self.rules = tuple(rules)


def setting(
    default: Any = ...,
    help: str = "",
    *,
    unit: str = "",
    keyed: bool = True,
    **limits: Any,
) -> Any:
    """Declares one setting.

    help: one line, shown in `docs/reference/profile.md`, the schema and editors.
    unit: of the value ("s", "images", "points").
    keyed: False for what does not change an artefact (a folder's place: its content counts).
    limits: pydantic's constraints (`ge`, `gt`, `le`, `lt`, `min_length`, `pattern`).
    """
    extra: dict[str, Any] = {}
    if unit:
        extra["unit"] = unit
    if not keyed:
        extra["keyed"] = False
    if callable(default):
        return Field(default_factory=default, description=help, json_schema_extra=extra or None, **limits)
    return Field(default, description=help, json_schema_extra=extra or None, **limits)
