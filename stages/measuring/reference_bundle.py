"""The targets of an earlier bundle, for timing new builds against them (`measure.reference`)."""

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
"""`model` of the earlier bundle's targets in a comparison."""


def subjects(archive: str, card: Mapping[str, Any], images: Path, work: Path) -> dict[str, Subject]:
    """Unpack a bundle, check every file by its SHA-256, and return its targets by name.

    Args:
        archive: Path of the NAME.tar.zst.
        card: `model.json` of the student that is measured now.
        images: The file of its test images; the bundle's targets run the same ones.
        work: The folder to unpack into, and for workers.

    Raises:
        StageError: The archive is no bundle, is damaged, or was made for images of another size.
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
        raise _no_bundle(where, f"its manifest.json has no {error}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _no_bundle(where, f"its manifest.json is not that of a bundle: {error}") from error


def runnable(bundle: Mapping[str, Subject], progress: Progress) -> dict[str, Subject]:
    """Return the bundle's targets whose runtime runs on this machine; note the reason for each other one."""
    usable = {}
    for name, subject in bundle.items():
        try:
            ability = registry.get(subject.target["runtime"]).ability_to_run()
            why_not = "" if ability.can else ability.why_not
        except UsageError as error:  # a runtime of another kdpipe version or of a plug-in
            why_not = f"{error.what}: {error.why}"
        if why_not:
            progress.note(not_timed(name, why_not))
        else:
            usable[name] = subject
    return usable


def not_timed(target: str, why: str) -> str:
    """Return the note on a target of the earlier bundle that is left out."""
    return f"{target} of the reference bundle is not timed: {why}"


def _check(bundle: Path, manifest: Mapping[str, Any], own_form: tuple[int, int], where: str) -> None:
    for name, entry in manifest["files"].items():
        expected = entry["sha256"]
        file = bundle / name
        if not file.is_file():
            raise _no_bundle(where, f"{name} is missing; its manifest.json lists it")
        digest = hash_file(file)
        if digest != expected:
            why = f"{name} is damaged: its SHA-256 is {digest[:12]}…, in manifest.json {expected[:12]}…"
            raise _no_bundle(where, why)
    bundle_form = _form(manifest)
    if bundle_form != own_form:
        raise StageError(
            "The bundle to compare with takes other images",
            where=where,
            why=f"its (image size, channels) are {bundle_form}, this profile's {own_form}",
            hint="name a bundle of the same profile, or set measure.reference to null",
        )


def _subject(name: str, bundle: Path, manifest: Mapping[str, Any], images: Path, work: Path) -> Subject:
    entry = manifest["targets"][name]
    return Subject(
        target={
            "model": MODEL,
            "target": name,
            "runtime": entry["runtime"],
            "precision": entry["precision"],
            "facts": {"batch_min": entry.get("batch_min"), "batch_max": entry["batch_max"]},
        },
        card={"preprocessing": manifest["preprocessing"], "input": manifest["input"]},
        folder=bundle / "models" / name,
        images=images,
        work=work,
    )


def _form(card: Mapping[str, Any]) -> tuple[int, int]:
    """Return image size in pixels and channels of a network's card or a bundle's manifest."""
    return card["preprocessing"]["image_size"], card["preprocessing"]["channels"]


def _unpacked(archive: Path, folder: Path, where: str) -> Path:
    """Unpack the archive into `folder`, and return the bundle's folder in it."""
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
    manifests = sorted(folder.glob("*/manifest.json"))
    if len(manifests) != 1:
        raise _no_bundle(where, f"it contains {len(manifests)} manifest.json, expected one")
    return manifests[0].parent


def _no_bundle(where: str, why: str) -> StageError:
    return StageError(
        "The bundle to compare with cannot be used",
        where=where,
        why=why,
        hint="name the NAME.tar.zst of a package artefact, or set measure.reference to null",
    )
