"""An earlier bundle, whose targets are what new builds of the same names are timed against."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zstandard

from pipeline.errors import StageError, UsageError
from pipeline.hashing import hash_file
from pipeline.paths import expand
from pipeline.stage import Progress
from stages.measuring.launch import Subject
from stages.runtimes import registry

MODEL = "reference"
"""What a comparison calls a target of the earlier bundle."""


def subjects(archive: str, card: Mapping[str, Any], images: Path, work: Path) -> dict[str, Subject]:
    """The targets of the bundle `archive` (NAME.tar.zst) by name, each file checked by its digest.

    card: of the student that is measured now; images: the file of its test images, which the earlier
    targets are shown too. Raises StageError if the archive is no bundle, is damaged, or was made for
    images of another form.
    """
    where = f"measure.reference: {archive}"
    try:
        file = expand(archive)
    except ValueError as error:
        raise _no_bundle(where, str(error)) from error
    bundle = _unpacked(file, work / "reference", where)
    own_form = _form(card)
    try:
        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        _check(bundle, manifest, own_form, where)
        return {name: _subject(name, bundle, manifest, images, work) for name in manifest["targets"]}
    except KeyError as error:
        raise _no_bundle(where, f"its manifest.json has no {error}, as that of a bundle has") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _no_bundle(where, f"its manifest.json is not that of a bundle: {error}") from error


def runnable(found: Mapping[str, Subject], progress: Progress) -> dict[str, Subject]:
    """Those of the earlier bundle's targets whose runtime runs here; why another's does not is noted."""
    fit = {}
    for name, one in found.items():
        try:
            ability = registry.get(one.target["runtime"]).ability_to_run()
            why_not = "" if ability.can else ability.why_not
        except UsageError as error:  # made by a kdpipe, or beside a package, that is not here
            why_not = f"{error.what}: {error.why}"
        if why_not:
            progress.note(not_timed(name, why_not))
        else:
            fit[name] = one
    return fit


def not_timed(target: str, why: str) -> str:
    """What to say of a target of the earlier bundle that nothing was held against."""
    return f"{target} of the reference bundle is not timed: {why}"


def _check(bundle: Path, manifest: Mapping[str, Any], own_form: tuple[int, int], where: str) -> None:
    for name, told in manifest["files"].items():
        file = bundle / name
        found = hash_file(file) if file.is_file() else "no such file"
        if found != told["sha256"]:
            raise _no_bundle(where, f"{name} is not as its manifest says: {found[:12]}")
    its_form = _form(manifest)
    if its_form != own_form:
        raise StageError(
            "The bundle to compare with takes other images",
            where=where,
            why=f"they have (side, channels) {its_form} there, {own_form} here",
            hint="name a bundle of the same profile, or set measure.reference to null",
        )


def _subject(name: str, bundle: Path, manifest: Mapping[str, Any], images: Path, work: Path) -> Subject:
    told = manifest["targets"][name]
    return Subject(
        target={
            "model": MODEL,
            "target": name,
            "runtime": told["runtime"],
            "precision": told["precision"],
            "facts": {"batch_min": told.get("batch_min"), "batch_max": told["batch_max"]},
        },
        card={"preprocessing": manifest["preprocessing"], "input": manifest["input"]},
        folder=bundle / "models" / name,
        images=images,
        work=work,
    )


def _form(told: Mapping[str, Any]) -> tuple[int, int]:
    return told["preprocessing"]["image_size"], told["preprocessing"]["channels"]


def _unpacked(archive: Path, folder: Path, where: str) -> Path:
    """The bundle's folder within `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with (
            archive.open("rb") as raw,
            zstandard.ZstdDecompressor().stream_reader(raw) as packed,
            tarfile.open(fileobj=packed, mode="r|") as tar,
        ):
            tar.extractall(folder, filter="data")
    except (OSError, tarfile.TarError, zstandard.ZstdError, EOFError) as error:
        raise _no_bundle(where, str(error)) from error
    found = sorted(folder.glob("*/manifest.json"))
    if len(found) != 1:
        raise _no_bundle(where, f"it holds {len(found)} manifest.json, expected one")
    return found[0].parent


def _no_bundle(where: str, why: str) -> StageError:
    return StageError(
        "The bundle to compare with cannot be used",
        where=where,
        why=why,
        hint="name the NAME.tar.zst of a package artefact, or set measure.reference to null",
    )
