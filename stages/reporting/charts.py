"""Charts as SVG text: no script, no font, no file beside the page.

Colours are CSS classes of the page, so that they follow its light and dark scheme. A label or the shape of
a mark shows everything that a colour shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 30, 44


@dataclass(frozen=True)
class Series:
    """A line of a chart: its points (x, y) in order; y is None if there is no value."""

    label: str
    points: Sequence[tuple[float, float | None]]
    kind: str
    dashed: bool = False


@dataclass(frozen=True)
class Mark:
    """A point of a scatter chart, with an optional vertical interval (low, high)."""

    label: str
    x: float
    y: float
    kind: str
    interval: tuple[float, float] | None = None
    detail: str = ""


def lines(series: Sequence[Series], *, x_label: str, y_label: str, title: str) -> str:
    """Draw a line chart with a legend; return an empty string if there is nothing to draw."""
    ys = [y for line in series for _, y in line.points if y is not None]
    xs = [x for line in series for x, y in line.points if y is not None]
    if not ys:
        return ""
    x_low, x_high = min(xs), max(xs)
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    y_ticks = ticks(min(ys), max(ys))
    scale = _Scale(x_low, x_high, y_ticks[0], y_ticks[-1])
    parts = [_frame(scale, ticks(x_low, x_high, whole=True), y_ticks, x_label, y_label)]
    for line in series:
        drawn = [(scale.x(x), scale.y(y)) for x, y in line.points if y is not None]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(f'<polyline class="line {line.kind}" points="{path}"{dash}/>')
        parts += [
            f'<circle class="dot {line.kind}" cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="2.5">'
            f"<title>{escape(line.label)}, {escape(x_label)} {x:g}: {y:.4g}</title></circle>"
            for x, y in line.points
            if y is not None
        ]
    legend = []
    for index, line in enumerate(series):
        x, y = LEFT + 8 + index * 150, 12  # above the frame, where no line runs
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        legend.append(
            f'<line class="line {line.kind}" x1="{x}" x2="{x + 18}" y1="{y}" y2="{y}"{dash}/>'
            f'<text class="legend" x="{x + 24}" y="{y + 4}">{escape(line.label)}</text>'
        )
    return svg(parts + legend, title)


def scatter(marks: Sequence[Mark], *, x_label: str, y_label: str, title: str) -> str:
    """Draw points on a logarithmic x axis, each with its name beside it; squares are the teacher's."""
    if not marks:
        return ""
    ys = [value for mark in marks for value in (mark.y, *(mark.interval or ()))]
    low, high = min(mark.x for mark in marks), max(mark.x for mark in marks)
    x_low, x_high = math.log10(low) - 0.12, math.log10(high) + 0.12
    y_ticks = ticks(min(ys), max(ys))
    scale = _Scale(x_low, x_high, y_ticks[0], y_ticks[-1])
    parts = [_frame(scale, log_ticks(x_low, x_high), y_ticks, x_label, y_label, power=True)]
    taken: list[tuple[float, float, float]] = []
    for mark in sorted(marks, key=lambda mark: -mark.y):
        x, y = scale.x(math.log10(mark.x)), scale.y(mark.y)
        tooltip = escape(f"{mark.label}: {mark.detail}" if mark.detail else mark.label)
        if mark.interval:
            top, bottom = scale.y(mark.interval[1]), scale.y(mark.interval[0])
            parts.append(
                f'<line class="whisker {mark.kind}" x1="{x:.1f}" x2="{x:.1f}" '
                f'y1="{top:.1f}" y2="{bottom:.1f}"/>'
            )
        shape = (
            f'<rect class="dot {mark.kind}" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10">'
            if mark.kind == "teacher"
            else f'<circle class="dot {mark.kind}" cx="{x:.1f}" cy="{y:.1f}" r="5.5">'
        )
        parts.append(f"{shape}<title>{tooltip}</title></{'rect' if mark.kind == 'teacher' else 'circle'}>")
        parts.append(_label(mark.label, x, y, taken))
    return svg(parts, title)


def bars(names: Sequence[str], groups: Sequence[tuple[str, str, Sequence[float]]], *, title: str) -> str:
    """Draw horizontal bars in per cent, a row for each name.

    Args:
        names: The names of the rows.
        groups: The bars of each row: (label, kind, values 0..100).
        title: The title of the chart.
    """
    if not names:
        return ""
    thick, gap = 9, 8
    row = thick * len(groups) + gap
    left = 24 + min(180, 7 * max(len(name) for name in names))
    height = TOP + 22 + row * len(names) + 8
    scale = (WIDTH - left - 64) / 100.0
    parts = []
    for index, (label, kind, _) in enumerate(groups):
        x = left + index * 150
        parts.append(f'<rect class="bar {kind}" x="{x}" y="{TOP - 6}" width="12" height="9"/>')
        parts.append(f'<text class="legend" x="{x + 18}" y="{TOP + 2}">{escape(label)}</text>')
    for number, name in enumerate(names):
        y = TOP + 18 + number * row
        middle = y + thick * len(groups) / 2 + 4
        shown = name if len(name) <= 25 else name[:24] + "…"
        parts.append(
            f'<text class="tick" text-anchor="end" x="{left - 8}" y="{middle:.1f}">{escape(shown)}</text>'
        )
        for index, (label, kind, values) in enumerate(groups):
            top = y + index * thick
            tooltip = f"{escape(name)}, {escape(label)}: {values[number]:.2f} %"
            parts.append(
                f'<rect class="bar {kind}" x="{left}" y="{top}" '
                f'width="{max(0.5, values[number] * scale):.1f}" '
                f'height="{thick - 2}"><title>{tooltip}</title></rect>'
                f'<text class="value" x="{left + values[number] * scale + 5:.1f}" y="{top + thick - 2}">'
                f"{values[number]:.1f}</text>"
            )
    return svg(parts, title, height=height)


def ticks(low: float, high: float, *, count: int = 5, whole: bool = False) -> list[float]:
    """Return round numbers that enclose low..high; with `whole`, the integers within it."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw - 1e-12)
    if whole:
        step = max(1.0, float(math.ceil(step)))
        first = math.ceil(low / step)
        return [step * index for index in range(first, math.floor(high / step) + 1)]
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * index, 10) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return the exponents of 1, 2 and 5 times powers of ten within 10**low..10**high."""
    exponents = [
        math.log10(factor * 10.0**power)
        for power in range(math.floor(low) - 1, math.ceil(high) + 1)
        for factor in (1, 2, 5)
    ]
    return [value for value in exponents if low <= value <= high]


@dataclass(frozen=True)
class _Scale:
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)


def _frame(
    scale: _Scale,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_label: str,
    y_label: str,
    *,
    power: bool = False,
) -> str:
    parts = []
    for value in y_ticks:
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{y + 4:.1f}">{value:g}</text>')
    for value in x_ticks:
        x = scale.x(value)
        shown = f"{10.0**value:.3g}" if power else f"{value:g}"
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}">{shown}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="axis" text-anchor="middle" x="{middle:.0f}" y="{HEIGHT - 8}">{escape(x_label)}</text>'
    )
    up = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="axis" text-anchor="middle" transform="rotate(-90 13 {up:.0f})" x="13" y="{up:.0f}">'
        f"{escape(y_label)}</text>"
    )
    return "".join(parts)


def _label(text: str, x: float, y: float, taken: list[tuple[float, float, float]]) -> str:
    """Draw a name beside its mark, moved down until it covers no other name, inside the frame."""
    width = 6.2 * len(text)
    anchor, at = ("start", x + 9) if x + 9 + width < WIDTH - 4 else ("end", x - 9)
    left = at if anchor == "start" else at - width
    line = y + 4
    while any(abs(line - other) < 12 and left < end and start < left + width for start, end, other in taken):
        line += 12
    taken.append((left, left + width, line))
    return f'<text class="name" text-anchor="{anchor}" x="{at:.1f}" y="{line:.1f}">{escape(text)}</text>'


def svg(parts: Sequence[str], title: str, *, height: int = HEIGHT) -> str:
    """Return the SVG element with these parts."""
    return (
        f'<svg role="img" viewBox="0 0 {WIDTH} {height}" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
