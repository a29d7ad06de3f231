"""PyYAML's Python parser, used where libyaml is absent, against its C parser: the same trees and marks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipeline.command_line import PROFILE, ROOT, environment

READER = """
import json, sys

if sys.argv[1] == "python":
    sys.modules["yaml._yaml"] = None  # as where PyYAML was built without libyaml

import yaml
from pipeline.profile.yaml_tree import Unreadable, parse

def facts(text):
    try:
        tree, faults = parse(text, "p.yaml")
    except Unreadable as error:
        return {"unreadable": error.fault.place}
    places = [[list(map(str, path)), str(each.place), str(each.set_at)] for path, each in tree.walk()]
    return {
        "plain": tree.plain(),
        "places": [str(tree.place), *places],
        "faults": [[fault.place, fault.message] for fault in faults],
    }

print(json.dumps({"libyaml": yaml.__with_libyaml__, "found": [facts(text) for text in json.load(sys.stdin)]}))
"""
FILES = sorted((ROOT / "profiles").rglob("*.yaml"))
TEXTS = [
    "",
    "# nothing\n",
    "a:\nb: 1",
    "? a\n: b",
    "? [",
    "- 1\n-\n- [a,\n b]",
    "é: {ü: [1,\n  2]}\nb:\n  c: x\n",
    "x: &a {p: 1, q: 2}\ny:\n  <<: *a\n  q: 3\nz: *a",
    "a: |\n  x\n  y\nb: >-\n  f",
    "a: 'x\n  y'\nb: \"x\\\n  y\\u00e9\"",
    "a: ! 1\nb: !",
    "a: !mine [1]\nb: !!int x",
    "---\na: 1\n...",
    "\ufeffa: 1",
    "a\x85b: 1",
    "a: 1\na: 2",
    "a:\n\t- b",
    "a: b: c",
    "a: *x",
    "a: 1\n---\nb: 2",
    "a: &x [*x]",
    "[" * 1000,
    "[" * 2000,
    "[1,2",
    "{a: 1",
    "a: 'x",
    'a: "\\q"',
    'a: "\\U00110000"',
    "é: 1\nb: \x01",
    "a: 1\n b: 2",
    "a: @b",
    "- a\nb: c",
    "a: [1,2}}",
]


def read(parser: str, texts: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", READER, parser],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    output: dict[str, Any] = json.loads(done.stdout)
    return output


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML has no libyaml here")
def test_both_parsers_give_the_same_trees_and_marks() -> None:
    assert len(FILES) > 5
    texts = [*(file.read_text(encoding="utf-8") for file in FILES), *TEXTS]
    of_c, of_python = read("c", texts), read("python", texts)
    assert (of_c["libyaml"], of_python["libyaml"]) == (True, False)
    for text, of_libyaml, other in zip(texts, of_c["found"], of_python["found"], strict=True):
        assert of_libyaml == other, text


def test_half_of_a_surrogate_pair_is_refused_without_libyaml() -> None:
    [facts] = read("python", ['a: "\\ud800"'])["found"]
    assert facts["unreadable"].startswith("p.yaml:1:")


def test_the_command_line_works_without_libyaml(home: Path) -> None:
    script = "import sys; sys.modules['yaml._yaml'] = None; from pipeline.cli import main; sys.exit(main())"
    (home / PROFILE).write_text((home / PROFILE).read_text() + "trian: {}\n")
    done = subprocess.run(
        [sys.executable, "-c", script, "plan", PROFILE],
        cwd=home,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert f"{PROFILE}:5:1" in done.stderr
