"""Releases on the device: folders by digest, and the link `current` to the one in use.

FOLDER/releases/DIGEST/     a bundle
FOLDER/current              a symbolic link to one of them, replaced in one step
FOLDER/releases.json        their order, the newest last; a rollback goes from a release to the one before it
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from stages.devices.there.files import flush, inside, locked, root

LAST_LINES = 8


def selftest(request: dict[str, Any]) -> dict[str, Any]:
    """Run the bundle's own self-test in a process of its own.

    Returns:
        `code`: its exit code; `lines`: its output; `last`: the last of these lines.
    """
    place = inside(root(request), request["place"])
    finished = subprocess.run(  # noqa: S603 - the bundle that was just verified
        [sys.executable, "-B", str(place / "predict.py"), "--selftest"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    lines = (finished.stdout + finished.stderr).splitlines()
    return {"code": finished.returncode, "lines": lines, "last": lines[-LAST_LINES:]}


def switch(request: dict[str, Any]) -> dict[str, Any]:
    """Make a release the current one in one step.

    Args:
        request: `digest`: of the release. `ship`: it becomes the newest, the release that was in use comes
            before it, and all but the newest `keep` are deleted.

    Returns:
        `current` and `previous`: digests; `removed`: the digests of deleted releases.

    Raises:
        UsageError: there is no such release.
    """
    folder = root(request)
    with _locked(folder):
        digest = str(request["digest"])
        if not (inside(folder / "releases", digest) / "manifest.json").is_file():
            raise UsageError("There is no such release on the device", where=digest)
        before = _current(folder)
        order = _order(folder)
        if request["ship"]:
            last = [before] if before in order and before != digest else []
            order = [*(other for other in order if other not in (digest, before)), *last, digest]
            _write_order(folder, order)
        _point(folder, digest)
        removed = _prune(folder, order, digest, request["keep"]) if request["ship"] else []
    return {"current": digest, "previous": before, "removed": removed}


def discard(request: dict[str, Any]) -> dict[str, Any]:
    """Delete the folder of the release `digest`, unless it was ever the current one."""
    folder = root(request)
    with _locked(folder):
        place = inside(folder / "releases", str(request["digest"]))
        if place.name not in (_current(folder), *_order(folder)):
            shutil.rmtree(place, ignore_errors=True)
    return {}


def releases(request: dict[str, Any]) -> dict[str, Any]:
    """Return the releases here.

    Returns:
        `releases`: the newest first; `current`: the digest in use; `before`: the digest that a rollback would
        make current.
    """
    folder = root(request)
    current = _current(folder)
    rows = []
    for digest in reversed(_order(folder)):
        manifest = json.loads((folder / "releases" / digest / "manifest.json").read_text(encoding="utf-8"))
        rows.append(
            {
                "digest": digest,
                "name": manifest["name"],
                "default_target": manifest["default_target"],
                "current": digest == current,
                "size_bytes": sum(entry["size"] for entry in manifest["files"].values()),
            }
        )
    order = _order(folder)
    earlier = order[: order.index(current)] if current in order else order
    return {"releases": rows, "current": current, "before": earlier[-1] if earlier else None}


def _order(folder: Path) -> list[str]:
    try:
        order = json.loads((folder / "releases.json").read_text(encoding="utf-8"))["order"]
    except (OSError, ValueError, KeyError):
        order = []
    return [digest for digest in order if (folder / "releases" / str(digest) / "manifest.json").is_file()]


def _write_order(folder: Path, order: list[str]) -> None:
    new = folder / f".releases.json.{os.getpid()}"
    new.write_text(json.dumps({"schema_version": 1, "order": order}) + "\n", encoding="utf-8")
    flush(new)
    new.replace(folder / "releases.json")


def _current(folder: Path) -> str | None:
    try:
        return (folder / "current").readlink().name
    except OSError:
        return None


def _point(folder: Path, digest: str) -> None:
    new = folder / f".current.{os.getpid()}"
    new.unlink(missing_ok=True)
    new.symlink_to(Path("releases") / digest)
    new.replace(folder / "current")
    flush(folder)


def _prune(folder: Path, order: list[str], current: str, keep: int) -> list[str]:
    remaining = {current, *order[-keep:]}
    removed = [digest for digest in order if digest not in remaining]
    for digest in removed:
        shutil.rmtree(folder / "releases" / digest, ignore_errors=True)
    _write_order(folder, [digest for digest in order if digest in remaining])
    return removed


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as file, locked(file.fileno(), str(folder)):
        yield
