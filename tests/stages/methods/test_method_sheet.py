"""docs/reference/methods.md says what every method may be told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stages.methods.settings import BUILT_IN, MethodSettings

SHEET = (Path(__file__).parents[3] / "docs" / "reference" / "methods.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\w+): .*?\n(.*?)(?=^## |\Z)", SHEET, re.M | re.S))


def name_of(kind: type[MethodSettings]) -> str:
    return str(kind.model_fields["name"].annotation.__args__[0])  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", BUILT_IN, ids=name_of)
def test_the_sheet_tells_the_keys_of_each_method_and_no_others(kind: type[MethodSettings]) -> None:
    section = SECTIONS[name_of(kind)]
    own = set(kind.model_fields) - set(MethodSettings.model_fields) - {"name"}
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    told = {key for row in rows for key in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert told - set(MethodSettings.model_fields) == own


def test_the_sheet_lists_every_method_in_the_order_of_the_schema() -> None:
    assert [name for name in SECTIONS if name in map(name_of, BUILT_IN)] == list(map(name_of, BUILT_IN))
    listed = re.findall(r"^\| \[`(\w+)`\]\(#([\w-]+)\)", SHEET, re.M)
    assert [name for name, _ in listed] == list(map(name_of, BUILT_IN))
    headings = re.findall(r"^## (.*)$", SHEET, re.M)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert {anchor for _, anchor in listed} <= anchors
