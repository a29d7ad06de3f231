"""Declarations of settings: type, default, range, unit and a line of help.

Imports only pydantic. The schema, `docs/reference/profile.md`, the validation and the help texts come
from these declarations.
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
    """Several violated rules of a group of settings.

    Args:
        rules: A sentence for each rule, which names the key to correct.
    """

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
    """Declare a setting.

    Args:
        default: The default, or a function that returns it; without one the setting is required.
        help: One line, shown in `docs/reference/profile.md`, the schema and editors.
        unit: The value's unit ("s", "images", "points").
        keyed: Set False for settings that do not affect the result, such as a folder's path.
        limits: pydantic's constraints (`ge`, `gt`, `le`, `lt`, `min_length`, `pattern`).

    Returns:
        pydantic's field.
    """
    extra: dict[str, Any] = {}
    if unit:
        extra["unit"] = unit
    if not keyed:
        extra["keyed"] = False
    if callable(default):
        return Field(default_factory=default, description=help, json_schema_extra=extra or None, **limits)
    return Field(default, description=help, json_schema_extra=extra or None, **limits)
