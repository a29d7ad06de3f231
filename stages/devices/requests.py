"""The request to measure one target on a device: written here, read there. Light: standard library only.

The request is one JSON object: the target and its files (`target`, `runtime`, `precision`, `bundle`, `onnx`,
`images`, `timings`, `place`), what its file takes (`batch_min`, `batch_max`, `image_shape`, `input`, `mean`,
`std`) and two sections of the profile, `measure` (as `settings`) and `build`. Paths are relative to kdpipe's
folder on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.runtimes.base import Source

BUILT_THERE = ("tensorrt", "tensorrt_rtx")
"""Runtimes whose files fit one device only, so that the device builds them."""


def is_built_there(target: str) -> bool:
    """Return whether the device builds this target's file from an ONNX file."""
    return target.rpartition("-")[0] in BUILT_THERE


def measuring_request(
    target: str, place: str, images: str | None, manifest: Mapping[str, Any], sections: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the request to measure a target.

    Args:
        target: its name.
        place: the measurement's folder on the device, with the bundle in `bundle`, ONNX files to build from
            in `onnx`, and the results in `results`.
        images: the file of test images there; None: none.
        manifest: the bundle's.
        sections: the profile's, JSON-ready.
    """
    runtime, _, precision = target.rpartition("-")
    preprocessing = manifest["preprocessing"]
    size = preprocessing["image_size"]
    built_there = is_built_there(target)
    batches = sections["build"] if built_there else manifest["targets"][target]
    return {
        "place": f"{place}/results/{target}",
        "target": target,
        "runtime": runtime,
        "precision": precision,
        "bundle": f"{place}/bundle",
        "onnx": f"{place}/onnx/{target}.onnx" if built_there else None,
        "images": images,
        "timings": "timings",
        "batch_min": batches.get("batch_min", 1),
        "batch_max": batches["batch_max"],
        "image_shape": [size, size, preprocessing["channels"]],
        "input": manifest["input"],
        "mean": preprocessing["mean"],
        "std": preprocessing["std"],
        "settings": sections["measure"],
        "build": sections["build"],
    }


def source_of(request: Mapping[str, Any]) -> Source:
    """Return what a runtime's session has to know of the target's file, from a request."""
    height, width, channels = request["image_shape"]
    return Source(
        onnx=Path(request["onnx"] or ""),
        precision=request["precision"],
        image_shape=(height, width, channels),
        input=request["input"],
        mean=tuple(request["mean"]),
        std=tuple(request["std"]),
    )
