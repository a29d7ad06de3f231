"""YAML as trees with places, and the faults of what is not YAML."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.profile.yaml_tree import SourcePlace, Unreadable, parse


def plain(text: str) -> object:
    tree, faults = parse(text, "p.yaml")
    assert faults == []
    return tree.plain()


def refusal(text: str | bytes) -> tuple[str, str]:
    with pytest.raises(Unreadable) as caught:
        parse(text, "p.yaml")
    return caught.value.fault.place, caught.value.fault.message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("007", 7),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("'1'", "1"),
        ("!!str 5", "5"),
        ("!!float 3", 3.0),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    values = plain(f"a: {text}")
    assert values == {"a": value}
    assert isinstance(values, dict)
    assert type(values["a"]) is type(value)


def test_keys_are_text() -> None:
    assert plain("1: a\ntrue: b\non: c") == {"1": "a", "true": "b", "on": "c"}


def test_every_key_and_value_has_its_place() -> None:
    tree, _ = parse("é: {ü: [1,\n  2]}\nb:\n  c: x\n", "p.yaml")
    places = {path: (str(inner.set_at), str(inner.place)) for path, inner in tree.walk()}
    assert places[("é",)] == ("p.yaml:1:1", "p.yaml:1:4")
    assert places[("é", "ü")] == ("p.yaml:1:5", "p.yaml:1:8")
    assert places[("é", "ü", 1)] == ("p.yaml:2:3", "p.yaml:2:3")
    assert places[("b", "c")] == ("p.yaml:4:3", "p.yaml:4:6")


def test_anchors_aliases_and_merge_keys() -> None:
    text = "x: &a {p: 1, q: 2}\ny:\n  <<: *a\n  q: 3\nz:\n  <<: [{r: 4}, *a, {r: 5}]\nw: *a"
    assert plain(text) == {
        "x": {"p": 1, "q": 2},
        "y": {"p": 1, "q": 3},
        "z": {"p": 1, "q": 2, "r": 4},
        "w": {"p": 1, "q": 2},
    }


def test_text_in_no_file_has_one_place() -> None:
    tree, _ = parse("[1, {a: 2}]", "--set x", at=SourcePlace("--set x"))
    assert {str(inner.place) for _, inner in tree.walk()} == {"--set x"}


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "p.yaml:4:3", "'c' appears twice; first in line 3"),
        ("a: .inf", "p.yaml:1:4", ".inf is not a finite number"),
        ("a: 1e999", "p.yaml:1:4", "1e999 is not a finite number"),
        ("a: " + "9" * 5000, "p.yaml:1:4", "5000 digits"),
        ("a: !!python/object:os.system x", "p.yaml:1:4", "!!python/object:os.system is not supported"),
        ("a: !mine [1]", "p.yaml:1:4", "!mine is not supported"),
        ("[1]: 2", "p.yaml:1:1", "a key must be text"),
        ("<<: 5", "p.yaml:1:5", "<< takes a group"),
        ("a: !!int x", "p.yaml:1:4", "does not fit"),
    ],
)
def test_faults_that_leave_the_rest_readable(text: str, place: str, words: str) -> None:
    _, faults = parse(text, "p.yaml")
    assert [fault.place for fault in faults] == [place]
    assert words in faults[0].message


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a:\n\t- b", "p.yaml:2:1", "found character that cannot start any token"),
        ("a: b: c", "p.yaml:1:5", "mapping values are not allowed"),
        ("a: *x", "p.yaml:1:4", "found undefined alias"),
        ("a: 1\n---\nb: 2", "p.yaml:2:1", "found another document"),
        ("a: &x [*x]", "p.yaml:1:4", "contains it"),
        ("[" * 100_000, "p.yaml:1:65", "nested deeper"),
        ("é: 1\nb: \x01", "p.yaml:2:4", "control characters"),
        (b"a: \xe9", "p.yaml:1:4", "not UTF-8 text: byte 0xe9"),
        (b"\x89PNG\r\n\x1a\n\x00", "p.yaml:1:1", "not UTF-8"),
        ("a: \ud800", "p.yaml:1:1", "not UTF-8"),
        ("a: " + "x" * (1 << 20), "p.yaml:1:1", "more than 1 MiB"),
    ],
)
def test_what_cannot_be_read_is_reported_with_place_and_reason(
    text: str | bytes, place: str, words: str
) -> None:
    where, message = refusal(text)
    assert where == place
    assert words in message


def test_aliases_that_multiply_are_bounded() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "unfold to more than" in refusal("\n".join(lines))[1]


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    tree, _ = parse(b"\xef\xbb\xbfa: 1", "p.yaml")
    assert tree.plain() == {"a": 1}
    assert str(tree.value["a"].set_at) == "p.yaml:1:1"


@given(st.one_of(st.binary(max_size=200), st.text(alphabet="ab:-[]{}&*<!'\"#|>%@\n\t 01.~?,", max_size=60)))
@example(b"<<: *a")
@example("? [")
def test_any_input_gives_a_tree_or_a_fault(content: bytes | str) -> None:
    try:
        tree, faults = parse(content, "p.yaml")
    except Unreadable as error:
        faults = [error.fault]
    else:
        tree.plain()
    assert all(fault.line > 0 for fault in faults)
