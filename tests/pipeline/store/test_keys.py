"""Canonical JSON, keys, and the differences between two of them."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.keys import canonical, content_digest, differences, sha256_of

FEW = settings(deadline=None, max_examples=60)

names = st.text("ab.ä\ud800", max_size=3)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | names
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(names, values, min_size=1, max_size=4)


def shuffled(value: Any, dice: random.Random) -> Any:
    if isinstance(value, dict):
        pairs = [(key, shuffled(entry, dice)) for key, entry in value.items()]
        dice.shuffle(pairs)
        return dict(pairs)
    return [shuffled(entry, dice) for entry in value] if isinstance(value, list) else value


def leaf_paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict) and value:
        return [path for key, entry in value.items() for path in leaf_paths(entry, (*at, key))]
    if isinstance(value, list) and value:
        return [path for index, entry in enumerate(value) for path in leaf_paths(entry, (*at, index))]
    return [at]


def with_leaf(value: Any, path: tuple[Any, ...], leaf: Any) -> tuple[Any, Any]:
    """Return a copy with one leaf replaced, and the leaf that it had before."""
    changed = copy.deepcopy(value)
    place = changed
    for step in path[:-1]:
        place = place[step]
    before, place[path[-1]] = place[path[-1]], leaf
    return changed, before


@FEW
@given(value=values, seed=st.integers())
def test_order_of_keys_does_not_count(value: Any, seed: int) -> None:
    assert canonical(shuffled(value, random.Random(seed))) == canonical(value)


@FEW
@given(value=values)
def test_survives_being_written_and_read(value: Any) -> None:
    assert sha256_of(json.loads(canonical(value))) == sha256_of(value)


@FEW
@given(value=mappings, leaf=leaves, data=st.data())
def test_any_changed_leaf_changes_the_key_and_is_reported(value: Any, leaf: Any, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(leaf_paths(value)))
    changed, before = with_leaf(value, path, leaf)
    same = type(before) is type(leaf) and repr(before) == repr(leaf)
    assert (sha256_of(changed) == sha256_of(value)) == same
    assert (differences(value, changed) == []) == same


@FEW
@given(old=mappings, new=mappings)
def test_differences_are_listed_exactly_where_keys_differ(old: Any, new: Any) -> None:
    assert bool(differences(old, new)) == (sha256_of(old) != sha256_of(new))


def test_the_key_of_a_value_never_changes_from_version_to_version() -> None:
    value = {"b": [1, 1.0, True, None, "ä"], "a": {"x": 1e-5, "y": -0.0}}
    assert canonical(value) == '{"a":{"x":1e-05,"y":-0.0},"b":[1,1.0,true,null,"\\u00e4"]}'
    assert sha256_of(value) == "ab4ea261c6b3e82131cfda8919a73bb4d1b57b67cfcf18066e1d54fd555ffdad"


@pytest.mark.parametrize("value", [{1: 2}, {None: 1}, {"a": {3: 4}}, {"a": object()}, {"a": {1, 2}}])
def test_refuses_what_json_would_bend(value: Any) -> None:
    with pytest.raises(TypeError):
        canonical(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_refuses_what_json_cannot_hold(value: Any) -> None:
    with pytest.raises(ValueError):
        canonical(value)


def test_differences_name_added_removed_and_nested_keys() -> None:
    old = {"a": 1, "gone": 2, "list": [1, 2], "methods": [{"name": "kd", "weight": 1.0}]}
    new = {"a": 1.0, "new": None, "list": [1, 2, 3], "methods": [{"name": "kd", "weight": 2.0}]}
    assert differences(old, new) == [
        ("a", 1, 1.0),
        ("gone", 2, None),
        ("list", [1, 2], [1, 2, 3]),
        ("methods.0.weight", 1.0, 2.0),
        ("new", None, None),
    ]


def test_content_digest_depends_on_names_and_content_only() -> None:
    digest = content_digest({"a": "1" * 64, "b/c": "2" * 64})
    assert digest == content_digest({"b/c": "2" * 64, "a": "1" * 64})
    assert digest != content_digest({"a": "2" * 64, "b/c": "1" * 64})
    assert digest != content_digest({"a": "1" * 64})
