"""Judged gates as JUnit XML: what CI servers show as tests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

UNSPEAKABLE = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even escaped."""


def junit(judgements: Sequence[Mapping[str, Any]], *, strict: bool) -> str:
    """One suite, a case for each gate and target; an undecided one is skipped, or failed if `strict`.

    judgements: of gates.json. No times and no host: equal judgements give equal bytes.
    """
    from xml.etree import ElementTree as Xml  # slow to load for what a cached run never needs

    failed = [one for one in judgements if fails(one, strict=strict)]
    skipped = [one for one in judgements if one["status"] == "undecided" and not strict]
    suite = Xml.Element(
        "testsuite",
        name="kdpipe gates",
        tests=str(len(judgements)),
        failures=str(len(failed)),
        errors="0",
        skipped=str(len(skipped)),
    )
    for one in judgements:
        case = Xml.SubElement(suite, "testcase", classname=_clean(one["target"]), name=_clean(title(one)))
        said = _clean(one["said"])
        if fails(one, strict=strict):
            Xml.SubElement(case, "failure", message=said, type=one["status"]).text = said
        elif one["status"] == "undecided":
            Xml.SubElement(case, "skipped", message=said)
    suites = Xml.Element("testsuites")
    suites.append(suite)
    Xml.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + Xml.tostring(suites, encoding="unicode") + "\n"


def fails(judgement: Mapping[str, Any], *, strict: bool) -> bool:
    return judgement["status"] == "missed" or (strict and judgement["status"] == "undecided")


def title(judgement: Mapping[str, Any]) -> str:
    """`accuracy_drop against student at most 1 points`, `latency_p50_ms b1 t1 at most 2 ms`."""
    words = [judgement["metric"]]
    if judgement["against"]:
        words.append(f"against {judgement['against']}")
    if judgement["batch"]:
        words.append(f"b{judgement['batch']} t{judgement['threads']}")
    side = "at most" if judgement["direction"] == "max" else "at least"
    return " ".join([*words, side, f"{judgement['limit']:g}", judgement["unit"]])


def _clean(text: str) -> str:
    return UNSPEAKABLE.sub("?", text)
