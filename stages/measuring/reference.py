"""An earlier bundle, whose targets are what new builds of the same names are timed against."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zstandard

from pipeline.errors import StageError
from stages.measuring.launch import Subject

MODEL = "reference"
"""What a comparison calls a target of the earlier bundle."""


def subjects(archive: str, card: Mapping[str, Any], images: Path, work: Path) -> dict[str, Subject]:
    """The targets of the bundle `archive` (NAME.tar.zst) by name, each file checked by its digest.

    card: of the student that is measured now; images: the file of its test images, which the earlier
    targets are shown too. Raises StageError if the archive is no bundle, is damaged, or was made for
    images of another form.
    """
    where = f"measure.reference: {archive}"
    bundle = _unpacked(Path(os.path.expandvars(archive)).expanduser(), work / "reference", where)
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    for name, told in manifest["files"].items():
        file = bundle / name
        found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no such file"
        if found != told["sha256"]:
            raise _no_bundle(where, f"{name} is not as its manifest says: {found[:12]}")
    its_form, own_form = _form(manifest), _form(card)
    if its_form != own_form:
        raise StageError(
            "The bundle to compare with takes other images",
            where=where,
            why=f"they have (side, channels) {its_form} there, {own_form} here",
            mend="name a bundle of the same profile, or set measure.reference to null",
        )
    its_card = {"preprocessing": manifest["preprocessing"], "input": manifest["input"]}
    return {
        name: Subject(
            target={
                "model": MODEL,
                "target": name,
                "runtime": told["runtime"],
                "precision": told["precision"],
                "facts": {"batch_max": told["batch_max"]},
            },
            card=its_card,
            folder=bundle / "models" / name,
            images=images,
            work=work,
        )
        for name, told in manifest["targets"].items()
    }


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
        mend="name the NAME.tar.zst of a package artefact, or set measure.reference to null",
    )
