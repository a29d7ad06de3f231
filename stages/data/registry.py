"""Data sets of third parties, through entry points of the group `kdpipe.data`.

Imports only the standard library, and pydantic when a plug-in is loaded.

An entry point's name is the kind's name in profiles (`data: {name: NAME}`). Its value names a
subclass of `stages.data.settings.DataSettings` with

    name: Literal["NAME"]
    def load(self) -> RawData                    # stages.data.raw
    def fingerprint(self, digest) -> str         # by content; digest(path) is a file's SHA-256

The module of that class should import nothing heavy: validation and plans import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from pipeline import plugins
from pipeline.errors import DataError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from stages.data.settings import DataSettings

GROUP = "kdpipe.data"


def plugin_names() -> tuple[str, ...]:
    """Return the sorted names of all installed kinds, without importing them."""
    return tuple(plugins.installed(GROUP))


def plugin_kind(name: str) -> type[DataSettings] | None:
    """Return the settings class of the installed kind `name`, or None if it is not installed.

    Raises:
        DataError: The plug-in cannot be imported or does not implement the interface.
    """
    point = plugins.installed(GROUP).get(name)
    return _load_kind(point) if point else None


def plugin_settings(settings: Any) -> Any:
    """Convert a namespace of settings to its plug-in's class; return other settings unchanged.

    Raises:
        DataError: No installed plug-in has the name.
    """
    from stages.data.settings import DataSettings

    if isinstance(settings, DataSettings):
        return settings
    kind = plugin_kind(settings.name)
    if kind is None:
        installed = ", ".join(plugin_names()) or "none"
        raise DataError(
            f"unknown kind of data set: {settings.name}",
            where="data.name",
            why=f"it is not built in, and the installed plug-ins are: {installed}",
            hint="correct data.name, or install the package that provides this kind",
        )
    return kind(**vars(settings))


def _load_kind(point: EntryPoint) -> type[DataSettings]:
    from stages.data.settings import DataSettings

    where = plugins.place(point)
    hint = "repair or uninstall that package; docs/guides/data.md describes the interface"
    try:
        kind = plugins.load(point)
    except ImportError as error:
        raise DataError(
            f"the data set plug-in {point.name} cannot be imported", where=where, why=str(error), hint=hint
        ) from error
    why = ""
    if not (isinstance(kind, type) and issubclass(kind, DataSettings)):
        why = "it is not a subclass of stages.data.settings.DataSettings"
    elif "name" not in kind.model_fields or point.name not in get_args(kind.model_fields["name"].annotation):
        why = f'its field `name` is not Literal["{point.name}"]'
    else:
        absent = [method for method in ("load", "fingerprint") if not callable(getattr(kind, method, None))]
        if absent:
            why = f"it has no method {' and no method '.join(absent)}"
    if why:
        raise DataError(
            f"the data set plug-in {point.name} does not implement the interface",
            where=where,
            why=why,
            hint=hint,
        )
    settings_class: type[DataSettings] = kind
    return settings_class
