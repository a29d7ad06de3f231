"""Data sets of third parties, through entry points of the group `kdpipe.data`.

Light: imports the standard library alone, and pydantic where a plug-in is really looked at.

An entry point's name is the kind's name in profiles (`data: {name: NAME}`); its value names a
subclass of `stages.data.settings.DataSettings` with

    name: Literal["NAME"]
    def load(self) -> RawData                    # stages.data.raw
    def fingerprint(self, digest) -> str         # by content; digest(path) is a file's SHA-256

The module that holds the class should import nothing heavy: it is read for validation and plans.
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
    """The names of all installed kinds, sorted, without importing them."""
    return tuple(plugins.installed(GROUP))


def plugin_kind(name: str) -> type[DataSettings] | None:
    """The settings class of the installed kind `name`, or None.

    Raises DataError for a plug-in that cannot be imported or does not keep to the interface.
    """
    point = plugins.installed(GROUP).get(name)
    return _kind(point) if point else None


def plugin_settings(settings: Any) -> Any:
    """`settings` as an object of its plug-in's class, if it came as a plain namespace.

    Raises DataError if no installed plug-in goes by its name.
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
            hint="correct data.name, or install the package that brings this kind",
        )
    return kind(**vars(settings))


def _kind(point: EntryPoint) -> type[DataSettings]:
    from stages.data.settings import DataSettings

    where = plugins.place(point)
    hint = "repair or uninstall that package; docs/guides/data.md tells the interface"
    try:
        kind = plugins.load(point)
    except ImportError as error:
        raise DataError(
            f"the data set plug-in {point.name} cannot be imported", where=where, why=str(error), hint=hint
        ) from error
    fault = ""
    if not (isinstance(kind, type) and issubclass(kind, DataSettings)):
        fault = "it is not a subclass of stages.data.settings.DataSettings"
    elif "name" not in kind.model_fields or point.name not in get_args(kind.model_fields["name"].annotation):
        fault = f'its field `name` is not Literal["{point.name}"]'
    else:
        absent = [method for method in ("load", "fingerprint") if not callable(getattr(kind, method, None))]
        if absent:
            fault = f"it has no method {' and no method '.join(absent)}"
    if fault:
        raise DataError(
            f"the data set plug-in {point.name} does not keep to the interface",
            where=where,
            why=fault,
            hint=hint,
        )
    return kind
