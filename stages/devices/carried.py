"""Samples on their way from the device: every field of them as it is, arrays as `.npy` files beside it."""

from __future__ import annotations

import typing
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.measuring import latency


def write(samples: latency.Samples, folder: Path, name: str) -> dict[str, Any]:
    """JSON of the samples; latencies go to `NAME.npy`, another array to `NAME-FIELD.npy`."""
    told: dict[str, Any] = {}
    for one in fields(samples):
        value = getattr(samples, one.name)
        if isinstance(value, np.ndarray):
            file = f"{name}.npy" if one.name == "ns" else f"{name}-{one.name}.npy"
            np.save(folder / file, value)
            value = {"npy": file}
        elif is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        elif isinstance(value, np.generic):
            value = value.item()
        told[one.name] = value
    return told


def read(told: dict[str, Any], folder: Path) -> latency.Samples:
    """What `write` wrote."""
    kinds = typing.get_type_hints(latency.Samples)
    values: dict[str, Any] = {}
    for name, value in told.items():
        if isinstance(value, dict) and "npy" in value:
            value = np.load(folder / value["npy"], allow_pickle=False)
        elif is_dataclass(kinds[name]):
            value = kinds[name](**value)
        values[name] = value
    return latency.Samples(**values)
