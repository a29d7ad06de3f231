"""Samples on their way from the device: every field as JSON, arrays as `.npy` files beside it."""

from __future__ import annotations

import typing
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.measuring import latency


def write_samples(samples: latency.Samples, folder: Path, name: str) -> dict[str, Any]:
    """Write the samples' arrays into `folder`; return the rest, JSON-ready.

    Latencies go to `NAME.npy`, another array to `NAME-FIELD.npy`.
    """
    entry: dict[str, Any] = {}
    for field in fields(samples):
        value = getattr(samples, field.name)
        if isinstance(value, np.ndarray):
            file = f"{name}.npy" if field.name == "ns" else f"{name}-{field.name}.npy"
            np.save(folder / file, value)
            value = {"npy": file}
        elif is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        elif isinstance(value, np.generic):
            value = value.item()
        entry[field.name] = value
    return entry


def read_samples(entry: dict[str, Any], folder: Path) -> latency.Samples:
    """Return the samples that `write_samples` wrote."""
    kinds = typing.get_type_hints(latency.Samples)
    values: dict[str, Any] = {}
    for name, value in entry.items():
        if isinstance(value, dict) and "npy" in value:
            value = np.load(folder / value["npy"], allow_pickle=False)
        elif is_dataclass(kinds[name]):
            value = kinds[name](**value)
        values[name] = value
    return latency.Samples(**values)
