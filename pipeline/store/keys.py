"""Canonical JSON, SHA-256, and what differs between two of them: the ground that keys stand on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pipeline.hashing import hash_bytes


def canonical(value: Any) -> str:
    """The one way to write a JSON value: keys sorted, no blanks, ASCII.

    Mappings must have string keys, for JSON would write the keys 1 and "1" alike. `1` and `1.0`
    are written differently, a tuple like a list. Raises TypeError for what is no JSON value and
    ValueError for NaN and the infinities.
    """
    _check(value, "value")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_of(value: Any) -> str:
    """SHA-256, as 64 hex digits, of a JSON value in canonical form."""
    return hash_bytes(canonical(value))


def content_digest(files: Mapping[str, str]) -> str:
    """The digest of an artefact's content, from the SHA-256 of each file by relative path."""
    return sha256_of({path: {"sha256": sha256} for path, sha256 in files.items()})


def differences(old: Any, new: Any, at: str = "") -> list[tuple[str, Any, Any]]:
    """Every place where two JSON values differ, as (dotted key, old, new), sorted by key.

    What is missing on one side is None there. Lists of mappings of one length are compared entry
    by entry (`distill.methods.0.weight`); any other list is told as a whole.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in sorted(old.keys() | new.keys()):
            place = f"{at}.{key}" if at else key
            if key not in new:
                found.append((place, old[key], None))
            elif key not in old:
                found.append((place, None, new[key]))
            else:
                found.extend(differences(old[key], new[key], place))
        return found
    if _mappings(old) and _mappings(new) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [found for index, (a, b) in pairs for found in differences(a, b, f"{at}.{index}")]
    # Compared as written: to Python 1 == 1.0 == True, to the key they are three values.
    return [] if canonical(old) == canonical(new) else [(at, old, new)]


def _mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value)


def _check(value: Any, at: str) -> None:
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{at} has the key {key!r}, which is no string")
            _check(entry, f"{at}.{key}")
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _check(entry, f"{at}.{index}")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{at} is {value}, which JSON cannot hold")
    elif value is not None and not isinstance(value, str | int):
        raise TypeError(f"{at} is of the type {type(value).__name__}, which JSON cannot hold")
