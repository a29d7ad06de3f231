"""What `--methods` says, read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.comparing.method_specs import MethodSpec, read_specs
from pipeline.errors import UsageError
from tests.errors import raises


def methods(*texts: str) -> dict[str, list[dict[str, Any]]]:
    return {entry.label: list(entry.methods or ()) for entry in read_specs(texts)}


def test_names_sums_and_keys() -> None:
    found = methods("kd, msdcrd+kd", "kd:temperature=2:weight=0.5+msdcrd:beta=0:grids=[1,2]:layers=last")
    assert found == {
        "kd": [{"name": "kd"}],
        "msdcrd+kd": [{"name": "msdcrd"}, {"name": "kd"}],
        "kd:temperature=2:weight=0.5+msdcrd:beta=0:grids=[1,2]:layers=last": [
            {"name": "kd", "temperature": 2, "weight": 0.5},
            {"name": "msdcrd", "beta": 0, "grids": [1, 2], "layers": "last"},
        ],
    }


def test_a_plus_within_a_number_adds_no_method() -> None:
    assert methods("kd:weight=1e+3+msdcrd")["kd:weight=1e+3+msdcrd"][0]["weight"] == 1000.0


def test_the_profile_s_own_and_all() -> None:
    own, *each = read_specs(["profile,all"])
    assert own == MethodSpec("profile", None)
    assert own.overrides() == ()
    assert {"kd", "msdcrd"} <= {entry.label for entry in each}
    assert all(entry.optional and entry.methods == ({"name": entry.label},) for entry in each)


def test_overrides_are_what_set_takes() -> None:
    (entry,) = read_specs(["kd:temperature=2"])
    key, _, value = entry.overrides()[0].partition("=")
    assert key == "distill.methods"
    assert json.loads(value) == [{"name": "kd", "temperature": 2}]


def test_a_file_of_methods(tmp_path: Path) -> None:
    file = tmp_path / "methods.yaml"
    file.write_text("strong kd: [{name: kd, weight: 3}]\nboth: [kd, msdcrd]\n")
    assert methods(f"@{file},kd") == {
        "strong kd": [{"name": "kd", "weight": 3}],
        "both": [{"name": "kd"}, {"name": "msdcrd"}],
        "kd": [{"name": "kd"}],
    }
    file.write_text("kd: [{name: kd, weight: 3}]\n")
    with raises(UsageError, why="two different lists"):
        read_specs([f"@{file}", "kd"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- kd\n", "maps labels"),
        ("student alone: [kd]\n", "1:1"),
        ("both: []\n", "1:1"),
        ("a: [\n", "YAML"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "methods.yaml").write_text(content)
    with pytest.raises(UsageError) as caught:
        read_specs([f"@{tmp_path / 'methods.yaml'}"])
    assert said in caught.value.why


@pytest.mark.parametrize(
    "text", ["", "kd,,msdcrd", "kd:", "kd:temperature", "2kd", "kd:a=1:a=2", "@absent.yaml"]
)
def test_what_cannot_be_read_is_told_with_its_form(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_specs([text])
    assert "--methods" in caught.value.where
    assert "NAME+NAME" in caught.value.hint
