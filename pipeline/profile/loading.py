"""The profile: found, read, checked, with every default written out.

    loaded = load("profiles/resnet_to_mobilenet.yaml", ["distill.epochs=5"])
    loaded.value("distill.epochs")      # 5
    loaded.place("distill.epochs")      # "--set"

Importing this module, and loading a profile that is remembered, imports neither pydantic nor yaml.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.profile import memo as profile_memo
from pipeline.profile.files import find, read, shipped_profiles

__all__ = ["LoadedProfile", "load", "shipped_profiles"]


@dataclass(frozen=True)
class LoadedProfile:
    """A valid profile.

    path: the file as found.
    sections: every top-level section by name, JSON-ready, every default written out.
    keyed: the same without the settings that change no artefact, at any depth.
    files: the profile, then all that it extends.
    overrides: `KEY=VALUE`, as given.
    places: by dotted key, where a value was set ("file:line:column", "--set"); defaults are not listed.
    """

    path: Path
    name: str
    sections: Mapping[str, Any]
    keyed: Mapping[str, Any]
    files: tuple[Path, ...]
    overrides: tuple[str, ...]
    places: Mapping[str, str] = field(default_factory=dict, repr=False)

    def settings(self, names: Iterable[str]) -> SimpleNamespace:
        """These sections as typed objects (`.train.epochs`); `seed` and `name` as plain values."""
        from pipeline.profile.reading import typed

        profile = typed(self.sections)
        return SimpleNamespace(**{name: getattr(profile, name) for name in names})

    def value(self, dotted: str) -> Any:
        """The value at a dotted key ("teacher.checkpoint", "targets.0.name"); None if there is none."""
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
        """Where a dotted key was set: "file:line:column", "--set" or "default"."""
        return self.places.get(dotted, "default")


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    memo_folder: Path | None = None,
    *,
    remember: bool = True,
) -> LoadedProfile:
    """Loads the profile `path` (a file, with or without `.yaml`, or a shipped profile's name).

    overrides: `KEY=VALUE` with dotted keys, applied in order. memo_folder: where valid profiles are
    remembered; made when there is something to remember. remember: False only looks there.
    Raises ProfileError with every fault at its place, UsageError if there is no such file.
    """
    file = find(path)
    read(file)
    memo = profile_memo.recall(memo_folder, file, overrides) if memo_folder else None
    if memo is None:
        from pipeline.profile.reading import read_profile

        reading = read_profile(file, overrides)
        memo = {name: getattr(reading, name) for name in ("sections", "keyed", "places", "digests", "absent")}
        if memo_folder and remember and not reading.plugins:
            profile_memo.remember(memo_folder, file, overrides, memo)
    return LoadedProfile(
        path=file,
        name=memo["sections"]["name"],
        sections=memo["sections"],
        keyed=memo["keyed"],
        files=tuple(Path(name) for name in memo["digests"]),
        overrides=tuple(overrides),
        places=memo["places"],
    )
