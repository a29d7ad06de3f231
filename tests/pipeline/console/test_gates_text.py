"""Judged gates as GitHub's annotations and as JUnit XML."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest

from pipeline.console.gates_text import github_annotations
from pipeline.junit import junit


def judgement(status: str, said: str = "too slow", **more: Any) -> dict[str, Any]:
    return {
        "gate": 0,
        "target": "onnxruntime-int8",
        "metric": "accuracy_drop",
        "against": "teacher",
        "batch": None,
        "threads": None,
        "direction": "max",
        "limit": 1.0,
        "unit": "points",
        "status": status,
        "said": said,
        **more,
    }


def test_annotations_stand_at_the_gate_s_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = {"judgements": [judgement("missed"), judgement("passed"), judgement("undecided", gate=1)]}
    places = {0: f"{tmp_path}/profiles/a,b:c.yaml:12:5", 1: "--set"}
    lines = github_annotations(found, places, strict=False)
    assert lines == [
        "::error file=profiles/a%2Cb%3Ac.yaml,line=12,col=5,title=gate missed%3A onnxruntime-int8::too slow",
        "::warning title=gate undecided%3A onnxruntime-int8::too slow",
    ]
    assert github_annotations(found, places, strict=True)[1].startswith("::error ")


def test_a_message_cannot_end_the_annotation() -> None:
    found = {"judgements": [judgement("missed", "50 % lost\n::error::another")]}
    (line,) = github_annotations(found, {}, strict=False)
    assert line.endswith("::50 %25 lost%0A::error::another")


def test_junit_counts_and_names_every_case() -> None:
    judgements = [
        judgement("passed"),
        judgement("missed", "a < b & \x00 c", target="b-fp32"),
        judgement("undecided", metric="latency_p50_ms", against=None, batch=1, threads=2, unit="ms"),
    ]
    suite = Xml.fromstring(junit(judgements, strict=False))[0]
    counts = {name: suite.get(name) for name in ("tests", "failures", "skipped", "errors")}
    assert counts == {"tests": "3", "failures": "1", "skipped": "1", "errors": "0"}
    passed, missed, undecided = suite
    assert (passed.get("name"), len(passed)) == ("accuracy_drop against teacher at most 1 points", 0)
    failure = missed.find("failure")
    assert failure is not None
    assert failure.get("message") == "a < b & ? c"
    assert undecided.get("name") == "latency_p50_ms b1 t2 at most 1 ms"
    assert undecided.find("skipped") is not None
    strict = Xml.fromstring(junit(judgements, strict=True))[0]
    assert (strict.get("failures"), strict.get("skipped")) == ("2", "0")
