"""report: one page that needs nothing beside it, and says everything."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.stages.line import Line

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def page(whole_line: Line) -> Path:
    return whole_line.folder / "report" / "report.html"


class Links(HTMLParser):
    """Collects whatever a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]


def test_the_page_needs_nothing_beside_it(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert [link for link in links.found if not link.startswith("#")] == []
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_the_page_tells_every_part(page: Path, whole_line: Line) -> None:
    text = page.read_text(encoding="utf-8")
    for part in ("scorecard", "not-built", "trade-off", "training", "per-class", "confusion", "stages"):
        assert f'id="{part}"' in text
    assert text.count("<svg") >= 6, "trade-off, per class, accuracy and three losses"
    scorecard = json.loads((whole_line.folder / "measure" / "scorecard.json").read_text(encoding="utf-8"))
    for row in scorecard["rows"]:
        assert row["target"] in text
    missing = next(row for row in scorecard["rows"] if row["top1"] is None)
    assert missing["why_not"].split(":")[0] in text
    assert "None" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)


def test_the_page_tells_how_far_latencies_can_be_trusted(page: Path, whole_line: Line) -> None:
    text = page.read_text(encoding="utf-8")
    scorecard = json.loads((whole_line.folder / "measure" / "scorecard.json").read_text(encoding="utf-8"))
    faster = text[text.index('id="faster"') : text.index('id="load"')]
    for found in scorecard["comparisons"]:
        assert f"<td>{found['ratio']:.3f}</td>" in faster
        assert found["verdict"] in faster
    load = text[text.index('id="load"') : text.index('id="conditions"')]
    conditions = text[text.index('id="conditions"') : text.index('id="trade-off"')]
    for row in scorecard["rows"]:
        for entry in row["open_loop"]:
            assert f"<td>{entry['service_p50_ms']:.3f}</td>" in load
        for entry in row["latency"]:
            assert f"<td>{entry['cpu_p50_ms']:.3f}</td>" in conditions
            for sign in entry["health"]["contended_by"]:
                assert sign in conditions
            if entry["energy"]["why_not"]:
                assert "not measured" in conditions
                assert html.escape(entry["energy"]["why_not"]) in conditions


def test_the_page_tells_whether_a_precision_pays(page: Path, whole_line: Line) -> None:
    text = page.read_text(encoding="utf-8")
    told = text[text.index('id="precision"') : text.index('id="load"')]
    (found,) = json.loads((page.parent / "summary.json").read_text(encoding="utf-8"))["precisions"]
    assert (found["target"], found["against"]) == ("onnxruntime-int8", "onnxruntime-fp32")
    assert found["speed"]["in_turns"] is True
    assert found["pays"] in told
    assert f"{found['accuracy']['points']:+.2f}" in told
    assert found["accuracy"]["images"] > 100
    for reason in found["why"]:
        assert html.escape(reason) in told
    rows = json.loads((whole_line.folder / "build" / "build.json").read_text(encoding="utf-8"))["targets"]
    facts = next(row["facts"] for row in rows if row["target"] == "onnxruntime-int8")
    assert facts["integer_operators"] > 0
    assert {"float_layers", "conversions"} <= set(facts)


def test_the_page_tells_how_int8_files_came_about(page: Path, whole_line: Line) -> None:
    text = page.read_text(encoding="utf-8")
    told = text[text.index('id="int8"') : text.index('id="conditions"')]
    calibration = json.loads(
        (whole_line.folder / "quantize" / "calibration.json").read_text(encoding="utf-8")
    )
    for figures in calibration["files"].values():
        assert figures["file"] in told
        assert figures["calibration"]["method"] in told
        assert f"<td>{figures['against_float']['points']:+.2f}</td>" in told
        for layer in figures["float_layers"]:
            assert html.escape(layer["layer"]) in told
    for doubt in calibration["images"]["doubts"]:
        assert html.escape(doubt) in told


def test_the_summary_is_for_scripts(page: Path) -> None:
    summary = json.loads((page.parent / "summary.json").read_text(encoding="utf-8"))
    assert summary["schema_version"] == 1
    assert summary["networks"]["student"]["top1"] > 50
    assert [stage["name"] for stage in summary["stages"]][-1] == "package"
    assert summary["recommendation"]["target"]


def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no browser here: apt-get install chromium")
    return found


def in_browser(page: Path, *arguments: str, profile: Path) -> subprocess.CompletedProcess[str]:
    command = [
        browser(),
        "--headless",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
        *arguments,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_page_opens_in_a_browser(page: Path, tmp_path: Path) -> None:
    finished = in_browser(page, "--dump-dom", profile=tmp_path / "profile")
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "<h1>tiny</h1>" in finished.stdout
    assert finished.stdout.count("<svg") >= 6
    shot = tmp_path / "page.png"
    in_browser(page, f"--screenshot={shot}", "--window-size=1200,3000", profile=tmp_path / "profile")
    assert shot.stat().st_size > 50_000
