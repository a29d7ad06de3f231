"""Figures and tables in plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SHORT_DIGEST = 12


def table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """Return a table: the header and aligned columns; `align` has one letter for each column, l or r."""
    return columns([header, *rows], align)


def columns(rows: Sequence[Sequence[str]], align: str) -> str:
    """Return aligned rows of cells; a cell may have several lines."""
    cells = [[cell.split("\n") for cell in row] for row in rows]
    widths = [max(len(line) for row in cells for line in row[column]) for column in range(len(align))]
    lines = []
    for row in cells:
        for number in range(max(len(cell) for cell in row)):
            parts = []
            for cell, width, side in zip(row, widths, align, strict=True):
                text = cell[number] if number < len(cell) else ""
                parts.append(text.rjust(width) if side == "r" else text.ljust(width))
            lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Return a duration in words: `0.4 s`, `81.2 s`, `12 min 05 s`, `2 h 07 min`."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def waiting(seconds: float) -> str:
    """Return a duration that has not ended, in whole seconds: `12 s`, `12 min 05 s`."""
    return f"{seconds:.0f} s" if seconds < 99.5 else duration(seconds)


def size(count: float) -> str:
    """Return a number of bytes in decimal units: `412 B`, `1.43 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{_three_digits(count)} {unit}"
        count /= 1000.0
    return f"{_three_digits(count)} TB"


def amount(count: float) -> str:
    """Return a shortened count: `11.2 M`."""
    for unit in ("", " k", " M", " G"):
        if abs(count) < 999.5:
            return f"{count:.0f}" if not unit else f"{_three_digits(count)}{unit}"
        count /= 1000.0
    return f"{_three_digits(count)} T"


def figure(value: Any, digits: int = 2, missing: str = "-") -> str:
    """Return a number with fixed digits, or `missing` for None."""
    return missing if value is None else f"{value:.{digits}f}"


def interval(pair: Sequence[float] | None, digits: int = 2) -> str:
    """Return an interval, `[95.10, 98.40]`, or an empty text for None."""
    return f"[{pair[0]:.{digits}f}, {pair[1]:.{digits}f}]" if pair else ""


def with_interval(value: float | None, pair: Sequence[float] | None, digits: int = 2) -> str:
    """Return a number and its interval: `97.22 [95.10, 98.40]`."""
    return f"{figure(value, digits)} {interval(pair, digits)}".rstrip()


def short(value: Any) -> str:
    """Return a value of a profile or manifest on one line, digests and long texts shortened."""
    if value is None:
        return "none"
    if isinstance(value, str):
        bare = value.removeprefix("sha256:")
        if len(bare) == 64 and all(letter in "0123456789abcdef" for letter in bare):
            return bare[:SHORT_DIGEST]
        return value if len(value) <= 60 else value[:57] + "..."
    import json

    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _three_digits(value: float) -> str:
    return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f}"
