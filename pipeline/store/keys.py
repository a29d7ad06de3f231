"""Keys of artefacts: canonical JSON, its SHA-256, and the differences between two JSON values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pipeline.hashing import hash_bytes


def canonical(value: Any) -> str:
    """Return a JSON value in its canonical form: keys sorted, no blanks, ASCII.

    Mappings must have string keys, because JSON would write the keys 1 and "1" alike. `1` and `1.0`
    are written differently, a tuple like a list.

    Raises:
        TypeError: It is not a JSON value.
        ValueError: It contains NaN or an infinity.
    """
    _check(value, "value")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_of(value: Any) -> str:
    """Return the SHA-256, as 64 hexadecimal digits, of a JSON value in canonical form."""
    return hash_bytes(canonical(value))


def content_digest(files: Mapping[str, str]) -> str:
    """Return the digest of an artefact's content.

    Args:
        files: By relative path, the SHA-256 of each file.
    """
    return sha256_of({path: {"sha256": sha256} for path, sha256 in files.items()})


def differences(old: Any, new: Any, at: str = "") -> list[tuple[str, Any, Any]]:
    """Return where two JSON values differ.

    Lists of mappings of the same length are compared entry by entry (`distill.methods.0.weight`); any other
    list is compared as a whole.

    Args:
        old: One value.
        new: The other value.
        at: The dotted key of the two values in the whole.

    Returns:
        (dotted key, old, new) of each difference, sorted by key. A key that one side lacks is None there.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        by_key = []
        for key in sorted(old.keys() | new.keys()):
            dotted = f"{at}.{key}" if at else key
            if key not in new:
                by_key.append((dotted, old[key], None))
            elif key not in old:
                by_key.append((dotted, None, new[key]))
            else:
                by_key.extend(differences(old[key], new[key], dotted))
        return by_key
    if _is_list_of_mappings(old) and _is_list_of_mappings(new) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [change for index, (a, b) in pairs for change in differences(a, b, f"{at}.{index}")]
    # Compared as written: to Python 1 == 1.0 == True, to the key they are three values.
    return [] if canonical(old) == canonical(new) else [(at, old, new)]


def _is_list_of_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value)


def _check(value: Any, at: str) -> None:
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{at} has the key {key!r}, which is not a string")
            _check(entry, f"{at}.{key}")
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _check(entry, f"{at}.{index}")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{at} is {value}, which JSON cannot hold")
    elif value is not None and not isinstance(value, str | int):
        raise TypeError(f"{at} is of the type {type(value).__name__}, which JSON cannot hold")
