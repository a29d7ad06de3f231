"""Write judged gates as JUnit XML, which CI servers show as tests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""The characters that XML 1.0 cannot contain, not even escaped."""


def junit(judgements: Sequence[Mapping[str, Any]], *, strict: bool) -> str:
    """Return a JUnit document: one suite, with a case for each gate and target.

    It contains no times and no host: equal judgements give equal bytes.

    Args:
        judgements: The judgements of gates.json.
        strict: Whether an undecided gate is a failed case, not a skipped one.
    """
    from xml.etree import ElementTree as Xml  # slow to load for what a cached run never needs

    failed = [judgement for judgement in judgements if fails(judgement, strict=strict)]
    skipped = [judgement for judgement in judgements if judgement["status"] == "undecided" and not strict]
    suite = Xml.Element(
        "testsuite",
        name="kdpipe gates",
        tests=str(len(judgements)),
        failures=str(len(failed)),
        errors="0",
        skipped=str(len(skipped)),
    )
    for judgement in judgements:
        case = Xml.SubElement(
            suite, "testcase", classname=_clean(judgement["target"]), name=_clean(title(judgement))
        )
        message = _clean(judgement["said"])
        if fails(judgement, strict=strict):
            Xml.SubElement(case, "failure", message=message, type=judgement["status"]).text = message
        elif judgement["status"] == "undecided":
            Xml.SubElement(case, "skipped", message=message)
    suites = Xml.Element("testsuites")
    suites.append(suite)
    Xml.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + Xml.tostring(suites, encoding="unicode") + "\n"


def fails(judgement: Mapping[str, Any], *, strict: bool) -> bool:
    """Return whether a gate fails the run; with `strict`, an undecided gate does."""
    return judgement["status"] == "missed" or (strict and judgement["status"] == "undecided")


def title(judgement: Mapping[str, Any]) -> str:
    """Return a gate in words, such as `latency_p50_ms b1 t1 at most 2 ms`."""
    words = [judgement["metric"]]
    if judgement["against"]:
        words.append(f"against {judgement['against']}")
    if judgement["batch"]:
        words.append(f"b{judgement['batch']} t{judgement['threads']}")
    side = "at most" if judgement["direction"] == "max" else "at least"
    return " ".join([*words, side, f"{judgement['limit']:g}", judgement["unit"]])


def _clean(text: str) -> str:
    return NOT_XML.sub("?", text)
