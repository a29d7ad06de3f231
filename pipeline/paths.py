"""The files and folders that a profile names. Light: imports only the standard library."""

from __future__ import annotations

import os
import re
from pathlib import Path

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def expand(text: str) -> Path:
    """Expand `$VARIABLES` and a leading `~`; a relative path starts at the working folder.

    A `$` in the name of an existing file needs no variable.

    Args:
        text: A path as the profile has it.

    Raises:
        ValueError: A variable is not set, or the home folder is not known; the text has the name.
    """
    expanded = os.path.expandvars(text)
    try:
        path = Path(expanded).expanduser()
    except RuntimeError as error:
        raise ValueError(f"the home folder of {Path(expanded).parts[0]} is not known") from error
    if (unset := _VARIABLE.search(expanded)) and not os.path.lexists(path):
        raise ValueError(f"${unset[1] or unset[2]} is not set")
    return path
