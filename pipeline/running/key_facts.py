"""The facts outside a profile that a key depends on: data, files, the machine, versions of libraries."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import stages as stage_table
from pipeline import plugins
from pipeline.errors import StageError, UsageError
from pipeline.machine import installed_versions
from pipeline.paths import expand
from pipeline.stage import Stage
from pipeline.store.store import Store


class Profile(Protocol):
    """The interface of a profile for the engine; `pipeline.profile.loading.LoadedProfile` has it.

    Attributes:
        path: The profile's file.
        name: The profile's name.
        sections: Every section with its defaults, JSON-ready.
        keyed: The same without the settings that are not part of a key.
    """

    @property
    def path(self) -> Path:
        """Return the profile's file."""

    @property
    def name(self) -> str:
        """Return the profile's name."""

    @property
    def sections(self) -> Mapping[str, Any]:
        """Return every section with its defaults, JSON-ready."""

    @property
    def keyed(self) -> Mapping[str, Any]:
        """Return every section without the settings that are not part of a key."""

    def settings(self, names: Iterable[str], /) -> SimpleNamespace:
        """Return these sections as typed objects."""

    def value(self, dotted: str, /) -> Any:
        """Return the value at a dotted key, or None."""

    def place(self, dotted: str, /) -> str:
        """Return where a dotted key was set: "file:line:column", "--set" or "default"."""


class KeyFacts:
    """The parts of a key beside the profile and the inputs: data, files, machine, versions of libraries.

    Each is determined once, so that all decisions of one run use the same values.
    """

    def __init__(self, profile: Profile, store: Store) -> None:
        self.profile = profile
        self.store = store
        self._values: dict[str, Any] = {}

    def of(self, stage: Stage) -> dict[str, Any]:
        """Return the parts `data`, `files`, `machine` of the stage's key, and `libraries` if it declares any.

        Raises:
            UsageError: The data or a file in the profile cannot be read.
        """
        libraries = {"libraries": self._libraries(stage)} if _every_library(stage) else {}
        return {
            **libraries,
            "data": self._cached("data", self._data) if stage.data else None,
            "files": {dotted: self._cached(f"file {dotted}", self._file, dotted) for dotted in stage.files},
            "machine": self._cached(f"machine {stage.name}", self._machine, stage),
        }

    def _cached(self, name: str, determine: Callable[..., Any], *arguments: Any) -> Any:
        if name not in self._values:
            self._values[name] = determine(*arguments)
        return self._values[name]

    def _data(self) -> str:
        fingerprint = resolve(stage_table.DATA_FINGERPRINT)
        return str(fingerprint(_attributes(self.profile.sections["data"]), self.store.digests.of))

    def _file(self, dotted: str) -> str | None:
        """Return the digest of the file at a key of the profile; None if the key is null."""
        value = self.profile.value(dotted)
        if value is None:
            return None
        try:
            path = expand(value)
            return self.store.digests.of(path)
        except OSError as error:
            why = f"{path.absolute()}: {error.strerror}"
            raise self._unreadable(dotted, why) from error
        except ValueError as error:
            raise self._unreadable(dotted, f"{value}: {error}") from error

    def _unreadable(self, dotted: str, why: str) -> UsageError:
        return UsageError(
            f"The file in {dotted} cannot be read",
            where=self.profile.place(dotted),
            why=why,
            hint=f"correct {dotted}, or set it to null",
        )

    def _libraries(self, stage: Stage) -> dict[str, str | None]:
        """Return the version of each distribution of the stage; None if it is not installed."""
        every = sorted({name for known in (*stage_table.STAGES, stage) for name in _every_library(known)})
        versions = self._cached(f"versions {' '.join(every)}", installed_versions, every)
        return {
            name: _release(versions[name], patch=stage.patch_releases) if name in versions else None
            for name in stage.libraries
        }

    def _machine(self, stage: Stage) -> Mapping[str, Any] | None:
        if stage.machine is None:
            return None
        sections = {
            name: self.profile.sections[name] for name in stage.reads if name in self.profile.sections
        }
        return dict(resolve(stage.machine)(_attributes(sections)))


def stage_for_profile(stage: Stage, profile: Profile) -> Stage:
    """Return the stage for a profile: with its conditional `reads` and `libraries` if they apply."""
    return stage_for_sections(stage, profile.sections)


def stage_for_sections(stage: Stage, sections: Mapping[str, Any]) -> Stage:
    """Return the stage for the sections of a profile; see `stage_for_profile`."""
    more = stage.conditional
    if more is None or set(more.reads) <= set(stage.reads):
        return stage
    read = {name: sections[name] for name in stage.reads if name in sections}
    if not resolve(more.condition)(_attributes(read)):
        return stage
    return replace(stage, reads=(*stage.reads, *more.reads), libraries=(*stage.libraries, *more.libraries))


def resolve(reference: str) -> Callable[..., Any]:
    """Import the function at "module:function".

    Raises:
        StageError: It cannot be imported.
    """
    try:
        function: Callable[..., Any] = plugins.imported(reference)
    except (ImportError, AttributeError) as error:
        raise StageError(
            f"kdpipe cannot load {reference}",
            why=f"{type(error).__name__}: {error}",
            hint="reinstall kdpipe: pip install --force-reinstall kdpipe",
        ) from error
    return function


def _release(version: str, *, patch: bool) -> str:
    """Return a version without its local part, and without `patch` only its first two numbers.

    `2.14.1+cu130` becomes `2.14.1`, or `2.14`.
    """
    public = version.partition("+")[0]
    first_two = re.match(r"\d+\.\d+", public)
    return first_two.group() if first_two and not patch else public


def _every_library(stage: Stage) -> tuple[str, ...]:
    return stage.libraries + (stage.conditional.libraries if stage.conditional else ())


def _attributes(value: Any) -> Any:
    """Return JSON values with mappings as namespaces, at every depth."""
    if isinstance(value, Mapping):
        return SimpleNamespace(**{key: _attributes(entry) for key, entry in value.items()})
    if isinstance(value, list | tuple):
        return [_attributes(entry) for entry in value]
    return value
