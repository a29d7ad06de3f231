"""What runs come to, from answers made by hand."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from html import escape
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from stages.comparing.judging import Predictions
from stages.comparing.summary import ALONE, comparison
from stages.reporting.comparison import gain_chart, page
from stages.statistics.crossed import gain

LABELS = np.arange(200, dtype=np.int16) % 10


def answered(right: float, seed: int) -> np.ndarray:
    """Predictions that are right with this probability."""
    random = np.random.default_rng(seed)
    return np.where(random.random(len(LABELS)) < right, LABELS, (LABELS + 1) % 10).astype(np.int16)


def run(label: str, seed: int, failed: str | None = None, **metrics: Any) -> dict[str, Any]:
    usual = {
        "val_top1": 80.0 + seed,
        "last_val_top1": 79.0,
        "best_epoch": 2,
        "seconds_per_epoch": 1.0 if label == ALONE else 1.5,
        "parameters": 1000,
        "method_parameters": 0 if label == ALONE else 50,
        "peak_memory_bytes": None,
        "device": "cpu",
    }
    return {
        "label": label,
        "seed": seed,
        "methods": [] if label == ALONE else [label],
        "key": None if failed else "ab" * 32,
        "digest": None if failed else "cd" * 32,
        "metrics": {} if failed else usual | metrics,
        "failed": failed,
    }


def made(
    chances: dict[str, float],
    seeds: int = 3,
    *,
    reference: str = ALONE,
    more: tuple[dict[str, Any], ...] = (),
) -> tuple[dict[str, Any], Predictions]:
    """A comparison of labels whose runs are right with these probabilities."""
    runs = [run(label, seed) for seed in range(seeds) for label in chances]
    best = [answered(chances[one["label"]], nth) for nth, one in enumerate(runs)]
    answers = Predictions(
        classes=10,
        labels=LABELS,
        teacher=answered(0.95, 99),
        best=np.stack(best),
        last=np.stack(best[::-1]),
        teacher_parameters=5000,
    )
    about = {"split": "test", "reference": reference, "unfit": [{"label": "odd", "why": "it has no <map>"}]}
    return comparison([*runs, *more], answers, about), answers


def test_every_figure_is_that_of_a_plain_computation() -> None:
    found, answers = made({ALONE: 0.6, "kd": 0.8, "msdcrd": 0.7})
    right = answers.best == LABELS
    alone, kd = right[0::3], right[1::3]
    method = next(one for one in found["methods"] if one["label"] == "kd")
    assert method["best"]["top1"] == pytest.approx(100 * kd.mean(), abs=1e-5)
    assert method["best"]["top1_sd"] == pytest.approx(100 * kd.mean(axis=1).std(ddof=1), abs=1e-5)
    assert method["best"]["gain_points"] == pytest.approx(100 * (kd.mean() - alone.mean()), abs=1e-5)
    expected = stats.ttest_rel(100 * kd.mean(axis=1), 100 * alone.mean(axis=1))
    assert method["best"]["over_seeds"]["p_value"] == pytest.approx(expected.pvalue, abs=1e-5)
    low, high = expected.confidence_interval(0.95)
    assert method["best"]["over_seeds"]["gain_ci"] == pytest.approx([low, high], abs=1e-4)
    whole = gain(kd, alone)
    assert method["best"]["gain_ci"] == pytest.approx(
        [100 * whole.interval[0], 100 * whole.interval[1]], abs=1e-5
    )
    assert method["best"]["gain_ci"][0] < low, "wider than by seeds alone"
    assert method["agreement_with_teacher"] == pytest.approx(
        100 * (answers.best[1::3] == answers.teacher).mean(), abs=1e-5
    )
    last = answers.last == LABELS
    assert method["last"]["gain_points"] == pytest.approx(
        100 * (last[1::3].mean() - last[0::3].mean()), abs=1e-5
    )
    assert (method["seconds_per_epoch"], method["times_reference"]) == (1.5, 1.5)
    assert (method["parameters"], method["method_parameters"]) == (1000, 50)
    assert method["best"]["val_top1"] == pytest.approx(81.0)


def test_the_reference_comes_first_then_the_greatest_gain() -> None:
    found, _ = made({ALONE: 0.6, "msdcrd": 0.7, "kd": 0.9})
    assert [one["label"] for one in found["methods"]] == [ALONE, "kd", "msdcrd"]
    assert found["methods"][0]["best"]["gain_points"] is None
    p_values = {one["label"]: one["best"] for one in found["methods"][1:]}
    smaller = min(p_values.values(), key=lambda one: one["p_value"])
    assert smaller["p_holm"] == pytest.approx(min(1.0, 2 * smaller["p_value"]), abs=2e-6)


def test_yes() -> None:
    answer = made({ALONE: 0.5, "kd": 0.95, "msdcrd": 0.5})[0]["answer"]
    assert (answer["verdict"], answer["method"]) == ("yes", "kd")
    assert answer["text"].startswith("Did distillation pay? Yes: kd +")
    assert "over the student alone (3 seeds, 200 test images; p = " in answer["text"]


def test_no_and_cannot_tell() -> None:
    assert made({ALONE: 0.95, "kd": 0.4})[0]["answer"]["verdict"] == "no"
    assert made({ALONE: 0.8, "kd": 0.8})[0]["answer"]["verdict"] == "cannot tell"


def test_one_seed_says_that_another_may_differ() -> None:
    found, _ = made({ALONE: 0.6, "kd": 0.9}, seeds=1)
    assert "(1 seed, 200 test images; another seed may differ)" in found["answer"]["text"]
    best = found["methods"][1]["best"]
    assert best["over_seeds"] is None
    assert best["top1_sd"] is None
    assert best["gain_ci"] == best["over_images"]["gain_ci"]


def test_another_reference_has_another_question() -> None:
    answer = made({"kd": 0.6, "msdcrd": 0.95}, reference="kd")[0]["answer"]
    assert answer["text"].startswith("Is a method better than kd? Yes: msdcrd +")


def test_failed_runs_are_told_and_pairs_are_those_that_both_have() -> None:
    failed = (run("kd", 3, "it diverged"), run("dkd", 0, "it diverged"))
    found, _ = made({ALONE: 0.6, "kd": 0.9}, more=(run(ALONE, 3, "killed"), *failed))
    by_label = {one["label"]: one for one in found["methods"]}
    assert by_label["kd"]["seeds_compared"] == [0, 1, 2]
    assert by_label["kd"]["failed"] == 1
    assert by_label["dkd"]["best"]["top1"] is None
    assert found["methods"][-1]["label"] == "dkd"
    assert [one["failed"] for one in found["runs"] if one["label"] == "dkd"] == ["it diverged"]
    assert "it diverged" in page("mine", found)


def test_a_reference_that_failed_leaves_nothing_to_compare() -> None:
    runs = [run(ALONE, 0, "it diverged"), run("kd", 0)]
    answers = Predictions(10, LABELS, LABELS, LABELS[None], LABELS[None], 5000)
    found = comparison(runs, answers, {"split": "test", "reference": ALONE, "unfit": []})
    assert found["answer"]["verdict"] == "cannot tell"
    assert found["answer"]["method"] is None
    assert "No method could be compared" in page("mine", found)


def test_the_table_of_answers_holds_all_of_them() -> None:
    _, answers = made({ALONE: 0.6, "kd": 0.9}, seeds=1)
    table = answers.table()
    assert table.dtype == np.int16
    assert (table[0] == LABELS).all()
    assert (table[1] == answers.teacher).all()
    assert (table[4] == answers.best[1]).all()
    assert (table[5] == answers.last[1]).all()


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


def test_the_page_is_whole_and_needs_nothing_beside_it() -> None:
    found, _ = made({ALONE: 0.6, "kd": 0.9, "msdcrd": 0.6})
    text = page("a <title>", found)
    links = _Links()
    links.feed(text)
    assert links.found == []
    assert "a &lt;title&gt;" in text
    assert "it has no &lt;map&gt;" in text
    assert escape(found["answer"]["text"]).replace("&#x27;", "&#39;") in text
    assert text.count("<svg") == 3
    assert "None" not in text


def test_the_chart_of_gains_holds_every_interval_and_seed() -> None:
    found, _ = made({ALONE: 0.6, "kd": 0.95, "msdcrd": 0.6})
    root = ET.fromstring(gain_chart(found, "best"))
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    kinds = [circle.attrib["class"] for circle in circles]
    assert kinds.count("seed student") == 6
    assert kinds.count("dot student") == 1, "filled: better"
    assert kinds.count("dot student hollow") == 1, "hollow: cannot tell"
    xs = [float(circle.attrib["cx"]) for circle in circles if circle.attrib["class"].startswith("dot")]
    assert xs[0] > xs[1], "the greater gain lies to the right"
