"""How JSON files are written: indented, in UTF-8, with a newline at the end. Standard library only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def json_text(value: Any) -> str:
    """Return the content of a JSON file that holds this value.

    Raises:
        TypeError: the value is not made of JSON's types.
    """
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file.

    Raises:
        TypeError: the value is not made of JSON's types.
        OSError: the file cannot be written.
    """
    path.write_text(json_text(value), encoding="utf-8")
