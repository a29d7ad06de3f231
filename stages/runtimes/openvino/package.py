"""The openvino package, imported without its telemetry. Light until `import_openvino` is called."""

from __future__ import annotations

import sys
from typing import Any


def import_openvino() -> Any:
    """Return the module `openvino`, imported without its telemetry.

    Importing openvino sends a usage event if the package openvino_telemetry, on which it depends, can be
    imported; openvino does without if it cannot.

    Raises:
        ImportError: the package is missing or damaged.
    """
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino
