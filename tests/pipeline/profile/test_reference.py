"""The generated schema and reference, and profiles as `show` prints them."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline.profile.loading import load, shipped_profiles
from pipeline.profile.reference import profile_reference, schema, schema_text, show

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Generated files


def test_the_schema_file_is_up_to_date() -> None:
    assert (ROOT / "kdpipe.schema.json").read_text("utf-8") == schema_text(), "run make schema"


def test_the_reference_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "reference" / "profile.md").read_text("utf-8") == profile_reference(), (
        "run make schema"
    )


def test_the_schema_names_every_section_its_defaults_and_units() -> None:
    generated = schema()
    loaded = load("resnet_to_mobilenet")
    assert generated["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(generated["properties"]) == {"extends", *loaded.sections}
    assert generated["then"]["required"] == ["data", "teacher", "student"]
    assert generated["then"]["properties"]["teacher"] == {"required": ["model"]}
    train = generated["$defs"]["TrainSettings"]["properties"]
    assert train["epochs"]["unit"] == "epochs"
    assert train["decay_epochs"]["default"] == []
    assert "default" not in generated["properties"]["name"]
    text = schema_text()
    assert '"keyed"' not in text
    assert '"discriminator"' not in text
    assert "] [" not in text  # each unit is there once


def test_every_key_of_a_profile_is_in_the_reference() -> None:
    page = profile_reference()
    generated = schema()
    for definition in generated["$defs"].values():
        full = definition["anyOf"][-1] if "anyOf" in definition else definition
        for key, described in full["properties"].items():
            assert f"`{key}`" in page
            help_ = described.get("description", "").partition(" [")[0]
            assert help_.replace("|", "\\|") in page
    for name in ("digits", "idx", "npz", "image_folder", "cifar10"):
        assert f"### data: {name}" in page
    assert "#### distill.methods: kd" in page


def test_links_of_the_reference_lead_somewhere() -> None:
    page = profile_reference()
    anchors = {
        line.lstrip("# ").lower().replace(".", "").replace(" ", "-")
        for line in page.splitlines()
        if line.startswith("#")
    }
    links = {part.partition(")")[0] for part in page.split("](#")[1:]}
    assert links
    assert links <= anchors


# Show


@pytest.mark.parametrize("path", shipped_profiles(), ids=lambda path: path.stem)
def test_a_shown_profile_loads_to_the_same(path: Path) -> None:
    loaded = load(path)
    Path("shown.yaml").write_text(show(loaded), encoding="utf-8")
    again = load("shown.yaml")
    assert again.sections == loaded.sections
    assert list(again.sections) == list(loaded.sections)


def test_what_differs_from_its_default_shows_where_it_was_set() -> None:
    Path("base.yaml").write_text(
        "data:\n  name: digits\nteacher: {model: a}\nstudent: {model: b}\n"
        "train:\n  epochs: 20\n  momentum: 0.5\n"
    )
    Path("p.yaml").write_text("extends: base.yaml\nseed: 0\ntargets: [openvino-fp32]\n")
    lines = show(load("p.yaml", ["distill.epochs=5", "quantize.exclude=[a b]"])).splitlines()
    assert "name: p" in lines
    assert "seed: 0" in lines  # said, but it is the default
    assert "  name: digits  # base.yaml:2" in lines
    assert "  epochs: 20" in lines
    assert "  momentum: 0.5  # base.yaml:7" in lines
    assert "  epochs: 5  # --set" in lines
    assert '  exclude: ["a b"]  # --set' in lines
    assert "  - name: openvino-fp32  # p.yaml:3" in lines
    assert "    - name: msdcrd" in lines
    assert sum("#" in line for line in lines) == 7


# What any profile may hold in text, numbers and free-form options.
TEXT = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.sampled_from(
        ["null", "true", "No", "~", "1e3", "0x1", "", " ", "a: b", "- x", "# x", "<<", "'", '"', "x\n"]
    ),
)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NAME = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)
PROFILE = st.fixed_dictionaries(
    {
        "data": st.fixed_dictionaries(
            {"name": st.just("idx")}, optional={"classes": st.lists(TEXT, max_size=3)}
        ),
        "teacher": st.fixed_dictionaries(
            {"model": TEXT.filter(bool)}, optional={"options": st.dictionaries(TEXT, VALUE, max_size=3)}
        ),
        "student": st.fixed_dictionaries({"model": TEXT.filter(bool)}),
    },
    optional={
        "name": NAME,
        "seed": st.integers(0, 2**31 - 1),
        "train": st.fixed_dictionaries(
            {}, optional={"learning_rate": NUMBER.filter(lambda x: x > 0), "clip_grad": st.none()}
        ),
        "distill": st.fixed_dictionaries(
            {
                "methods": st.lists(
                    st.sampled_from([{"name": "kd"}, {"name": "msdcrd", "layers": [1, -1]}]), min_size=1
                )
            }
        ),
        "report": st.fixed_dictionaries({"title": TEXT}),
        "targets": st.sampled_from([["openvino-fp32"], [{"name": "tensorrt-int8", "required": True}]]),
    },
)


@pytest.mark.long
@hypothesis_settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(profile=PROFILE)
def test_showing_loses_nothing(profile: dict[str, Any]) -> None:
    quoted = yaml.safe_dump(profile, default_style='"', allow_unicode=False, width=10_000)
    Path("p.yaml").write_text(quoted, encoding="utf-8")
    loaded = load("p.yaml")
    assert loaded.sections["teacher"]["options"] == profile["teacher"].get("options", {})
    Path("shown.yaml").write_text(show(loaded), encoding="utf-8")
    again = load("shown.yaml")
    assert json.dumps(dict(again.sections)) == json.dumps(dict(loaded.sections))
    assert again.keyed == loaded.keyed
