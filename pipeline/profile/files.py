"""Find the file of a profile (the file itself, with `.yaml` added, or a shipped profile), and read it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import UsageError


@dataclass
class Search:
    """The result of a search for a file.

    Attributes:
        file: The file; None if there is none.
        absent: The paths without a file that come before it in the search.
    """

    file: Path | None = None
    absent: list[Path] = field(default_factory=list)


@dataclass
class ProfileFiles:
    """The files of a profile. Each is read once, so that everything is made of the same content.

    Attributes:
        contents: By path, what was read.
        sealed: Whether `contents` has every file of a profile that was loaded before. The disk, where the
            files may have changed since, is then not searched.
    """

    contents: dict[Path, bytes] = field(default_factory=dict)
    sealed: bool = False

    def read(self, path: Path) -> bytes:
        """Return the file's content, which is read from the disk the first time.

        Raises:
            UsageError: The file cannot be read.
        """
        if path not in self.contents:
            self.contents[path] = read(path)
        return self.contents[path]

    def is_file(self, path: Path) -> bool:
        """Return whether there is such a file."""
        return path in self.contents or (not self.sealed and _is_file(path))


def shipped_profiles() -> list[Path]:
    """Return the profiles that come with kdpipe (in a checkout `profiles/`), by name, subfolders last.

    Files whose name begins with `_` are left out: they are not complete profiles, other profiles extend them.
    """
    return [path for path in _shipped_files() if not path.name.startswith("_")]


def _shipped_files() -> list[Path]:
    here = Path(__file__).resolve().parent.parent
    for folder in (here / "profiles", here.parent / "profiles"):
        if folder.is_dir() and (folder.parent == here or (here.parent / "pyproject.toml").is_file()):
            return [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("*/*.yaml"))]
    return []


def search(name: str, folder: Path | None = None, is_file: Callable[[Path], bool] | None = None) -> Search:
    """Search for the profile `name`.

    Args:
        name: A path, or a shipped profile's name with or without its subfolder (`cifar100/NAME`).
        folder: What a relative path starts from; None for the working folder.
        is_file: Returns whether there is a file at a path; None looks at the disk.
    """
    is_file = is_file or _is_file
    result = Search()
    path = Path(name) if folder is None else _tidy(folder / name)
    candidates = [path]
    if path.name and not path.name.endswith((".yaml", ".yml")):
        candidates.append(path.with_name(path.name + ".yaml"))
    for candidate in candidates:
        if is_file(candidate):
            result.file = candidate
            return result
        result.absent.append(candidate)
    if not name.startswith("./"):
        result.file = next((path for path in _shipped_files() if _has_name(path, name)), None)
    return result


def _has_name(shipped: Path, name: str) -> bool:
    """Return whether `name` is the file's name or its path below `profiles`, with or without `.yaml`."""
    file_name = name.removeprefix("profiles/").removesuffix(".yaml") + ".yaml"
    return file_name in (shipped.name, f"{shipped.parent.name}/{shipped.name}")


def find(path: str | Path) -> Path:
    """Find the file of a profile.

    Args:
        path: A path, or a shipped profile's name.

    Raises:
        UsageError: There is no such file; the hint lists the nearest names.
    """
    name = os.fspath(path)
    result = search(name)
    if result.file is not None:
        return result.file
    if name and _is_folder(Path(name)):
        raise UsageError(
            f"{name} is a folder, not a profile",
            where=name,
            why="a profile is one YAML file",
            hint=_did_you_mean(nearest(name, Path(name))) or "name the file",
        )
    raise UsageError(
        f"there is no profile {name!r}",
        where=name,
        why="it is neither a file nor the name of a shipped profile",
        hint=_did_you_mean(nearest(name, Path(name).parent)) or "give the path of a YAML file",
    )


def nearest(name: str, folder: Path) -> list[str]:
    """Return at most 6 profiles with a name like `name`: similar names first, then the shipped profiles."""
    from difflib import get_close_matches

    shipped = {path.stem: path.stem for path in shipped_profiles()}
    try:
        beside = {path.stem: str(path) for path in sorted(folder.glob("*.yaml"))[:1000]}
    except OSError:
        beside = {}
    offered = {**shipped, **beside}
    alike = get_close_matches(Path(name).stem, offered, n=3, cutoff=0.5)
    inside = list(beside) if folder == Path(name) else []
    return list(dict.fromkeys(offered[stem] for stem in [*alike, *inside, *shipped]))[:6]


def read(path: Path) -> bytes:
    """Return the file's content.

    Raises:
        UsageError: The file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read", where=str(path), why=error.strerror or str(error), hint=f"ls -l {path}"
        ) from None


def _did_you_mean(names: list[str]) -> str:
    return f"did you mean one of these? {', '.join(names)}" if names else ""


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _tidy(path: Path) -> Path:
    """Return `a/../b` as `b`, if both are the same file (they differ if `a` is a link)."""
    tidy = Path(os.path.normpath(path))
    try:
        return tidy if not path.exists() or tidy.samefile(path) else path
    except (OSError, ValueError):
        return path
