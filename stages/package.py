"""package: pack a bundle that runs on a device without kdpipe.

Models, labels, preprocessing, golden inputs and outputs, `predict.py`, a manifest with the
SHA-256 of every file, and a model card written from the measured values; as a folder and as one
`.tar.zst` whose bytes depend only on the content.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import zstandard

from pipeline.errors import StageError
from pipeline.hashing import hash_file
from pipeline.json_files import json_text
from pipeline.stage import Context, Metrics
from stages.bundle import predict
from stages.bundle.tolerance import TOLERANCE
from stages.reporting.model_card import model_card

NOT_REQUIRED = ("cuda", "gpu", "pnnx")
"""Entries of a target's versions that pip cannot install or that only its builder needs."""


def run(context: Context) -> Metrics:
    """Pack the built targets of the student.

    Raises:
        StageError: No target was built.
    """
    build_folder, measure_folder = context.inputs["build"], context.inputs["measure"]
    build = _read(build_folder / "build.json")
    scorecard = _read(measure_folder / "scorecard.json")
    pick = _read(context.inputs["gate"] / "gates.json")["pick"]
    student, teacher = _read(build_folder / "student.json"), _read(build_folder / "teacher.json")

    selection = context.settings.package.targets
    built = {t["target"]: t for t in build["targets"] if t["model"] == "student" and t["built"]}
    chosen = [name for name in built if selection is None or name in selection]
    for name in sorted(set(selection or ()) - set(built)):
        context.progress.note(f"{name} is not in the bundle: it was not built")
    if not chosen:
        raise StageError(
            "There is no target to pack",
            where="stage package",
            why="none of the selected targets was built on this machine",
            hint="build.json lists the reasons; or add onnxruntime-fp32 to the profile's targets",
        )

    bundle = context.output / "bundle"
    rows = {row["target"]: row for row in scorecard["rows"] if row["model"] == "student"}
    (bundle / "golden").mkdir(parents=True)
    for name in chosen:
        shutil.copytree(build_folder / built[name]["folder"], bundle / "models" / name)
        golden = measure_folder / "golden" / f"student-{name}.npy"
        if golden.exists():
            shutil.copyfile(golden, bundle / "golden" / f"{name}.npy")
    for name in ("inputs.npy", "labels.npy"):
        shutil.copyfile(measure_folder / "golden" / name, bundle / "golden" / name)
    _write(bundle / "labels.txt", "\n".join(student["classes"]) + "\n")
    _write(bundle / "preprocessing.json", json_text(student["preprocessing"]))
    shutil.copyfile(Path(predict.__file__), bundle / "predict.py")
    default = _default_target(pick, chosen)
    _write(bundle / "requirements.txt", _requirements({name: built[name] for name in chosen}, default))
    _write(bundle / "MODEL_CARD.md", model_card(context.settings.name, scorecard, pick, student, teacher))

    manifest = {
        "schema_version": 1,
        "name": context.settings.name,
        "default_target": default,
        "input": student["input"],
        "preprocessing": student["preprocessing"],
        "targets": {name: _target(built[name], rows.get(name)) for name in chosen},
        "files": _listing(bundle),
    }
    _write(bundle / "manifest.json", json_text(manifest))
    archive = context.output / f"{context.settings.name}.tar.zst"
    _pack(bundle, archive, root=context.settings.name, level=context.settings.package.level)
    return {
        "targets": chosen,
        "default_target": default,
        "files": len(manifest["files"]) + 1,
        "archive_bytes": archive.stat().st_size,
    }


def _default_target(pick: dict[str, Any], chosen: list[str]) -> str:
    target: str | None = pick["target"]
    return target if target in chosen else chosen[0]


def _target(target: dict[str, Any], row: dict[str, Any] | None) -> dict[str, Any]:
    tolerance, least_agreement = TOLERANCE[target["precision"]]
    latency = row["latency"][0] if row and row["latency"] else {}
    return {
        "runtime": target["runtime"],
        "precision": target["precision"],
        "versions": target["versions"],
        "sha256": target["sha256"],
        "size_bytes": target["size_bytes"],
        "batch_min": target.get("facts", {}).get("batch_min") or 1,
        "batch_max": target.get("facts", {}).get("batch_max") or 256,
        "top1": row["top1"] if row else None,
        "p50_ms": latency.get("p50_ms"),
        "tolerance": tolerance,
        "least_agreement": least_agreement,
    }


def _requirements(targets: dict[str, dict[str, Any]], default: str) -> str:
    """Return the packages that the default target needs; those of the others as comments."""
    lines = ["# The versions that were measured.", "numpy>=1.26"]
    lines += _pins(targets[default])
    seen = set(lines)
    for name, target in targets.items():
        for pin in _pins(target):
            if pin not in seen:
                seen.add(pin)
                lines.append(f"# for {name}: {pin}")
    return "\n".join(lines) + "\n"


def _pins(target: dict[str, Any]) -> list[str]:
    return [
        f"{name}=={version}"
        for name, version in sorted(target["versions"].items())
        if name not in NOT_REQUIRED
    ]


def _listing(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {
            "sha256": hash_file(path),
            "size": path.stat().st_size,
        }
        for path in files
    }


def _pack(folder: Path, archive: Path, *, root: str, level: int) -> None:
    """Write a tar with sorted names and no times, owners or links, compressed by one thread."""
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
    with (
        archive.open("wb") as raw,
        compressor.stream_writer(raw) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = tarfile.TarInfo(f"{root}/{path.relative_to(folder).as_posix()}")
            content = path.read_bytes()
            entry.size = len(content)
            entry.mode = 0o755 if path.name == "predict.py" else 0o644
            tar.addfile(entry, io.BytesIO(content))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
