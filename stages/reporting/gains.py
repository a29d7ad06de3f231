"""A chart of gains: a row for each method with its mean, its interval and the gain of each seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from stages.reporting.charts import RIGHT, WIDTH, svg, ticks

ROW, TOP, BOTTOM = 34, 14, 46
LETTER, LONGEST_NAME = 6.6, 26


@dataclass(frozen=True)
class Row:
    """A method's gain in points.

    Attributes:
        label: The method.
        mean: The mean gain over the seeds.
        interval: Its 95 % interval.
        seeds: (seed, gain) of each seed, in order.
        verdict: `better`, `worse` or `cannot tell`.
    """

    label: str
    mean: float
    interval: tuple[float, float]
    seeds: Sequence[tuple[int, float]]
    verdict: str


def gains(rows: Sequence[Row], *, x_label: str, title: str) -> str:
    """Draw the rows from the top down, with a line at 0; return an empty string without rows."""
    if not rows:
        return ""
    values = [0.0]
    for row in rows:
        values += [row.mean, *row.interval, *(gain for _, gain in row.seeds)]
    marks = ticks(min(values), max(values))
    left = 20 + LETTER * max(len(short(row.label)) for row in rows)
    scale = (WIDTH - RIGHT - 12 - left) / (marks[-1] - marks[0])
    height = TOP + ROW * len(rows) + BOTTOM
    floor = height - BOTTOM

    def x(value: float) -> float:
        return left + (value - marks[0]) * scale

    parts = []
    for value in marks:
        text = f"{value:+g}" if value else "0"
        parts.append(
            f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP}" y2="{floor}"/>'
            f'<text class="tick" text-anchor="middle" x="{x(value):.1f}" y="{floor + 17}">{text}</text>'
        )
    zero = f'x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{TOP}" y2="{floor}"'
    parts.append(f'<line class="line baseline" {zero}/>')
    for number, row in enumerate(rows):
        y = TOP + ROW * (number + 0.5)
        parts.append(_row(row, y, left, x(row.interval[0]), x(row.interval[1])))
        parts += [
            f'<circle class="seed student" cx="{x(gain):.1f}" cy="{y + 9:.1f}" r="2.6">'
            f"<title>{escape(row.label)}, seed {seed}: {gain:+.2f} points</title></circle>"
            for seed, gain in row.seeds
        ]
        parts.append(_mean(row, x(row.mean), y))
    middle = (left + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="axis" text-anchor="middle" x="{middle:.0f}" y="{height - 8}">{escape(x_label)}</text>'
    )
    return svg(parts, title, height=height)


def _row(row: Row, y: float, left: float, low: float, high: float) -> str:
    """Draw the name, and the interval with its ends."""
    ends = "".join(
        f'<line class="whisker student" x1="{end:.1f}" x2="{end:.1f}" y1="{y - 5:.1f}" y2="{y + 5:.1f}"/>'
        for end in (low, high)
    )
    return (
        f'<text class="tick" text-anchor="end" x="{left - 10:.1f}" y="{y + 4:.1f}">'
        f"{escape(short(row.label))}<title>{escape(row.label)}</title></text>"
        f'<line class="whisker student" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>{ends}'
    )


def _mean(row: Row, x: float, y: float) -> str:
    """Draw the mean: filled if the interval excludes 0, else hollow."""
    hollow = " hollow" if row.verdict == "cannot tell" else ""
    low, high = row.interval
    return (
        f'<circle class="dot student{hollow}" cx="{x:.1f}" cy="{y:.1f}" r="5">'
        f"<title>{escape(row.label)}: {row.mean:+.2f} points [{low:+.2f}, {high:+.2f}], {row.verdict}</title>"
        "</circle>"
    )


def short(label: str) -> str:
    """Shorten a label so that it fits beside a mark."""
    return label if len(label) <= LONGEST_NAME else f"{label[: LONGEST_NAME - 1]}…"
