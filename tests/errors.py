"""Expect an error of kdpipe, and check the field that a pattern is meant for."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TypeVar

import pytest

from pipeline.errors import KdpipeError

E = TypeVar("E", bound=KdpipeError)


@contextlib.contextmanager
def raises(
    kind: type[E],
    *,
    what: str | None = None,
    where: str | None = None,
    why: str | None = None,
    hint: str | None = None,
) -> Iterator[pytest.ExceptionInfo[E]]:
    """Expect `kind`; every pattern must be found in the field of its name.

    `pytest.raises(kind, match=...)` searches all fields at once, so a word in `why` satisfies a pattern
    that is meant for `what`.

    Args:
        kind: The error's class.
        what: Regular expression for the error's `what`; the other patterns likewise.

    Example:
        >>> with raises(KdpipeError, what="no target", why="found abacus"):
        ...     raise KdpipeError("no target of that name", why="found abacus")
    """
    patterns = {"what": what, "where": where, "why": why, "hint": hint}
    with pytest.raises(kind) as caught:
        yield caught
    for name, pattern in patterns.items():
        if pattern is not None:
            text = getattr(caught.value, name)
            assert re.search(pattern, text), f"{name} is {text!r}, expected {pattern!r}"
