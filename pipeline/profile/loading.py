"""Load a profile: find, read and check it, and fill in every default.

    loaded = load("profiles/resnet_to_mobilenet.yaml", ["distill.epochs=5"])
    loaded.value("distill.epochs")      # 5
    loaded.place("distill.epochs")      # "--set"

Importing this module, and loading a cached profile, imports neither pydantic nor yaml.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.profile import memo as profile_memo
from pipeline.profile.files import ProfileFiles, find, shipped_profiles

__all__ = ["LoadedProfile", "load", "shipped_profiles"]


@dataclass(frozen=True)
class LoadedProfile:
    """A valid profile. Its files are read once: later changes on the disk do not affect it.

    Attributes:
        path: The profile's file.
        name: The profile's name.
        sections: Every top-level section by name, JSON-ready, every default written out.
        keyed: The same without the settings that change no artefact, at any depth.
        contents: By path, the files that were read: the profile, then all that it extends.
        overrides: `KEY=VALUE`, as given.
        places: By dotted key, where a value was set ("file:line:column", "--set"); defaults are not listed.
        memo: What `remember` writes; None if the profile came from a memo, or cannot have one.
    """

    path: Path
    name: str
    sections: Mapping[str, Any]
    keyed: Mapping[str, Any]
    contents: Mapping[Path, bytes] = field(repr=False)
    overrides: tuple[str, ...]
    places: Mapping[str, str] = field(default_factory=dict, repr=False)
    memo: profile_memo.Memo | None = field(default=None, repr=False, compare=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """The profile, then all that it extends."""
        return tuple(self.contents)

    def settings(self, names: Iterable[str]) -> SimpleNamespace:
        """Return these sections as typed objects (`.train.epochs`); `seed` and `name` as plain values."""
        from pipeline.profile.reading import typed

        profile = typed(self.sections)
        return SimpleNamespace(**{name: getattr(profile, name) for name in names})

    def value(self, dotted: str) -> Any:
        """Return the value at a dotted key ("teacher.checkpoint", "targets.0.name"), or None."""
        value: Any = self.sections
        for part in dotted.split("."):
            if isinstance(value, Mapping):
                value = value.get(part)
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                return None
        return value

    def place(self, dotted: str) -> str:
        """Return where a dotted key was set: "file:line:column", "--set" or "default"."""
        return self.places.get(dotted, "default")

    def with_overrides(self, overrides: Sequence[str], memo_folder: Path | None = None) -> LoadedProfile:
        """Return the profile with more overrides, from the content of the files that was read before.

        Args:
            overrides: `KEY=VALUE` with dotted keys, applied after those of this profile.
            memo_folder: Where validated profiles are cached; nothing is written there.

        Raises:
            ProfileError: The profile is invalid with these overrides.
        """
        files = ProfileFiles(dict(self.contents), sealed=True)
        return _load(self.path, (*self.overrides, *overrides), files, memo_folder)

    def remember(self, memo_folder: Path) -> None:
        """Cache this profile as it was read. A folder that cannot be written to is not an error."""
        if self.memo is not None:
            profile_memo.remember(memo_folder, self.memo)


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    memo_folder: Path | None = None,
    *,
    remember: bool = True,
) -> LoadedProfile:
    """Load a profile.

    Args:
        path: A file, with or without `.yaml`, or a shipped profile's name.
        overrides: `KEY=VALUE` with dotted keys, applied in order.
        memo_folder: Where validated profiles are cached; made when there is something to cache.
        remember: False only looks there.

    Raises:
        ProfileError: The profile is invalid; with every fault at its place.
        UsageError: There is no such file, or it cannot be read.
    """
    loaded = _load(find(path), overrides, ProfileFiles(), memo_folder)
    if memo_folder and remember:
        loaded.remember(memo_folder)
    return loaded


def _load(
    file: Path, overrides: Sequence[str], files: ProfileFiles, memo_folder: Path | None
) -> LoadedProfile:
    content = files.read(file)
    name = profile_memo.name_of(file, content, overrides) if memo_folder else ""
    values = profile_memo.recall(memo_folder, name, files) if memo_folder else None
    memo = None
    if values is not None:
        contents = {Path(path): files.read(Path(path)) for path in values["digests"]}
    else:
        from pipeline.profile.reading import read_profile

        reading = read_profile(file, overrides, files)
        contents = reading.contents
        values = {key: getattr(reading, key) for key in ("sections", "keyed", "places", "absent")}
        if memo_folder and not reading.plugins:
            memo = profile_memo.make(name, values, contents)
    return LoadedProfile(
        path=file,
        name=values["sections"]["name"],
        sections=values["sections"],
        keyed=values["keyed"],
        contents=contents,
        overrides=tuple(overrides),
        places=values["places"],
        memo=memo,
    )
