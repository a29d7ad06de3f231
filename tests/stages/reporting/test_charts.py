"""Charts: well-formed SVG that holds what it was given."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from stages.reporting import charts

SVG = "{http://www.w3.org/2000/svg}"
finite = st.floats(-1e6, 1e6, allow_nan=False)


@given(finite, st.floats(1e-6, 1e6))
def test_ticks_enclose_the_values_with_round_even_steps(low: float, spread: float) -> None:
    found = charts.ticks(low, low + spread)
    assert found[0] <= low + 1e-6 * max(1, abs(low))
    assert found[-1] >= low + spread - 1e-6 * max(1, abs(low))
    assert 2 <= len(found) <= 8


def test_ticks_by_hand() -> None:
    assert charts.ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert charts.ticks(96.2, 99.9) == [96, 97, 98, 99, 100]
    assert charts.ticks(1, 20, whole=True) == [5, 10, 15, 20]
    assert charts.ticks(3, 3)[0] < 3 < charts.ticks(3, 3)[-1]


def test_log_ticks_are_ones_twos_and_fives() -> None:
    values = [round(10**tick, 6) for tick in charts.log_ticks(math.log10(0.3), math.log10(12))]
    assert values == [0.5, 1, 2, 5, 10]


def test_a_line_chart_draws_every_point_and_escapes_names() -> None:
    series = [
        charts.Series("a <b> & c", [(1, 90.0), (2, None), (3, 95.0)], "student"),
        charts.Series("teacher", [(1, 97.0), (2, 98.0)], "teacher", dashed=True),
    ]
    root = ET.fromstring(charts.lines(series, x_label="epoch", y_label="top-1, %", title="curves"))
    assert len(root.findall(f"{SVG}circle")) == 4
    assert len(root.findall(f"{SVG}polyline")) == 2
    assert "a <b> & c" in [text.text for text in root.findall(f"{SVG}text")]


def test_an_empty_chart_is_no_chart() -> None:
    assert charts.lines([], x_label="", y_label="", title="") == ""
    assert charts.scatter([], x_label="", y_label="", title="") == ""
    assert charts.bars([], [], title="") == ""


def test_a_single_point_is_drawn_inside_the_frame() -> None:
    root = ET.fromstring(
        charts.lines([charts.Series("one", [(1, 5.0)], "student")], x_label="x", y_label="y", title="t")
    )
    circle = root.find(f"{SVG}circle")
    assert circle is not None
    assert charts.LEFT < float(circle.attrib["cx"]) < charts.WIDTH


def test_scatter_orders_by_latency_and_keeps_names_apart() -> None:
    marks = [
        charts.Mark("teacher, onnxruntime-fp32", 4.0, 99.3, "teacher", (98.4, 99.7)),
        charts.Mark("onnxruntime-fp32", 0.45, 98.9, "student", (97.8, 99.4)),
        charts.Mark("onnxruntime-int8", 0.46, 98.9, "student", (97.8, 99.4)),
    ]
    root = ET.fromstring(charts.scatter(marks, x_label="ms", y_label="%", title="trade-off"))
    circles = sorted(float(c.attrib["cx"]) for c in root.findall(f"{SVG}circle"))
    square = next(r for r in root.findall(f"{SVG}rect"))
    assert circles[-1] < float(square.attrib["x"]), "the slower one lies to the right"
    names = [t for t in root.findall(f"{SVG}text") if t.attrib["class"] == "name"]
    lines = sorted(float(name.attrib["y"]) for name in names if "teacher" not in (name.text or ""))
    assert lines[1] - lines[0] >= 12, "names of equal marks do not cover each other"


def test_bars_are_as_long_as_their_values() -> None:
    drawn = charts.bars(["zero", "one"], [("student", "student", [50.0, 100.0])], title="per class")
    root = ET.fromstring(drawn)
    widths = [float(r.attrib["width"]) for r in root.findall(f"{SVG}rect")][1:]
    assert math.isclose(widths[1], 2 * widths[0], rel_tol=1e-2)
