"""How a stage's figures are put into words."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.console.stage_figures import stage_figures


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("load_s", 79.8, "79.8 s"),
        ("seconds", 0.25, "0.2 s"),
        ("images_per_s", 79.8, "79.8"),
        ("size_bytes", 2048, "2.05 kB"),
        ("images", 12345, "12,345"),
        ("ready", True, "yes"),
        ("peak_memory_bytes", None, "-"),
    ],
)
def test_a_figure_is_shown_by_its_unit(name: str, value: object, shown: str, tmp_path: Path) -> None:
    line = stage_figures("train", tmp_path, {name: value}).splitlines()[-1]
    assert line.split(None, 1) == [name, shown]
