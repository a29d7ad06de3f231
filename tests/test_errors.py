"""The helper that expects errors tells their fields apart; tests of kdpipe's errors use it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pipeline import errors
from pipeline.errors import KdpipeError, StageError, UsageError
from tests.errors import raises

FIELDS = ("what", "where", "why", "hint")
HERE = Path(__file__).resolve().parent


def _error() -> StageError:
    return StageError("A text", where="B text", why="C text", hint="D text")


def test_each_pattern_is_searched_in_its_own_field() -> None:
    with raises(StageError, what="^A text$", where="^B", why="^C", hint="^D") as caught:
        raise _error()
    assert caught.value.what == "A text"


@pytest.mark.parametrize(("field", "letter"), zip(FIELDS, "BCDA", strict=True))
def test_a_pattern_that_only_another_field_has_fails(field: str, letter: str) -> None:
    with pytest.raises(AssertionError, match=f"^{field} is "), raises(StageError, **{field: letter}):
        raise _error()


def test_another_class_and_no_error_fail() -> None:
    with pytest.raises(StageError), raises(UsageError, what="A"):
        raise _error()
    with pytest.raises(pytest.fail.Exception), raises(KdpipeError, what="A"):
        pass


@pytest.mark.long
def test_no_test_matches_all_fields_of_an_error_at_once() -> None:
    ours = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, KdpipeError)
    }
    places = [
        f"{file.relative_to(HERE)}:{call.lineno}"
        for file in HERE.rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) == "pytest.raises"
        and {ast.unparse(kind).rpartition(".")[2] for kind in call.args} & ours
        and any(word.arg == "match" for word in call.keywords)
    ]
    assert places == []
