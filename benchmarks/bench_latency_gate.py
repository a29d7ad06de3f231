"""Count how often the latency gates raise a false alarm, and how often they detect a slow-down of 10 %.

    python benchmarks/bench_latency_gate.py [--repeats N] [--seconds S] [--runtime NAME] [--slower PERCENT]

The program measures two builds N times in turns: an identical build, and the same network with added
convolutions. It first measures how many convolutions give the requested slow-down, and then measures the
actual slow-down separately, for longer. Three rules judge each build, in the same way as a run of kdpipe (new
processes, warm-up, intervals):

    slowdown        the gate `slowdown`, limit: half the requested slow-down; timed in turns
                    (`measure.reference`, `measure.compare_s`)
    verdict         the verdict on the same samples: faster, slower or cannot tell
    latency_p50_ms  a limit in milliseconds, the same share above a p50 that is measured once, at the start
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from latency_subjects import subject, where

from stages.gating.judging import Measured, judge
from stages.gating.settings import GateSettings
from stages.measuring import interleave, launch, reference_bundle, turns
from stages.measuring.interleave import Ratio
from stages.measuring.launch import Subject
from stages.measuring.settings import MeasureSettings
from stages.statistics.intervals import wilson_interval

SIDES = {"first": reference_bundle.MODEL, "second": "student"}

TRIAL_LAYERS = 16
"""Added layers of the first trial, which gives the estimate for the next."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=4.0, help="time of a comparison (measure.compare_s)")
    parser.add_argument("--alone-seconds", type=float, default=1.0, help="time of a p50 (measure.duration_s)")
    parser.add_argument("--calibration-seconds", type=float, default=20.0)
    parser.add_argument("--launches", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runtime", default="onnxruntime", choices=("onnxruntime", "openvino"))
    parser.add_argument("--model", default="mobilenetv3_small_100")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--extra-width", type=int, default=8, help="channels of the added convolutions")
    parser.add_argument("--slower", type=float, default=10.0, help="the slow-down to detect, per cent")
    options = parser.parse_args()
    print(
        f"{options.model}, {options.size} pixels, batch 1, fp32, {options.threads} threads, {options.runtime}"
    )
    print(
        f"in turns: {options.launches} launches of {options.rounds} rounds, {options.seconds:g} s in total; "
        f"p50: {options.alone_seconds:g} s"
    )
    print("\n".join(where()), end="\n\n")
    with tempfile.TemporaryDirectory(prefix="kdpipe-bench-") as folder:
        base = _subject(Path(folder), "base", options, 0)
        same = _subject(Path(folder), "same", options, 0)
        slow, slowdown = _calibrate(Path(folder), base, options)
        low, high = slowdown.interval
        print(
            f"actual slow-down: {slowdown.value:.4f} [{low:.4f}, {high:.4f}], requested: {options.slower:g} %"
        )
        builds = {"same build": Tally(same), "slowed down": Tally(slow)}
        limit = options.slower / 2.0
        at_start = _p50(base, options)
        limit_ms = at_start["p50_ms"] * (1.0 + limit / 100.0)
        print(f"limits: slowdown {limit:g} %, latency_p50_ms {limit_ms:.4f} ms")
        for _ in range(options.repeats):
            for tally in builds.values():
                tally.measure(base, limit, limit_ms, options)
        for name, tally in builds.items():
            tally.show(name)


class Tally:
    """The results of all rules for a build, repeat by repeat."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.results: dict[str, list[str]] = {"slowdown": [], "verdict": [], "latency_p50_ms": []}
        self.ratios: list[float] = []
        self.flagged = 0

    def measure(self, base: Subject, limit: float, limit_ms: float, options: argparse.Namespace) -> None:
        """Measure the build once, in turns with `base` and by itself, and judge it by each rule."""
        ratio = _compare(base, self.subject, options, options.seconds)
        alone = _p50(self.subject, options)
        self.ratios.append(ratio.value)
        self.results["verdict"].append(ratio.verdict)
        gates = [
            GateSettings(metric="slowdown", max=limit),
            GateSettings(metric="latency_p50_ms", max=limit_ms),
        ]
        for judgement in judge(gates, _scorecard(ratio, alone)):
            self.results[judgement["metric"]].append(judgement["status"])
        self.flagged += bool(set(alone["flags"]) - {"tail under-sampled"})

    def show(self, name: str) -> None:
        """Print the ratios and the share of each result."""
        ratios, n = sorted(self.ratios), len(self.ratios)
        print(
            f"\n{name}: ratio {ratios[0]:.3f} .. {ratios[n // 2]:.3f} .. {ratios[-1]:.3f}, "
            f"{self.flagged} of {n} p50 flagged as doubtful"
        )
        for rule, results in self.results.items():
            for word, count in sorted(Counter(results).items()):
                low, high = wilson_interval(count, n)
                print(
                    f"  {rule:<15} {word:<12} {count:3d} of {n} = {100 * count / n:5.1f} % "
                    f"(95 % interval {100 * low:.1f} to {100 * high:.1f})",
                    flush=True,
                )


def _scorecard(ratio: Ratio, alone: dict[str, Any]) -> Measured:
    """Build the part of the measure stage's scorecard that the gates read."""
    sides = {side: {"model": model, "target": "build"} for side, model in SIDES.items()}
    scorecard = {
        "rows": [{"model": "student", "target": "build", "top1": 0.0, "latency": [alone]}],
        "comparisons": [{**sides, "ratio": ratio.value, "ratio_ci": ratio.interval}],
        "settings": {"batch_sizes": [alone["batch"]], "threads": [alone["threads"]]},
    }
    return Measured(Path(), scorecard, {})


def _p50(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a latency entry of the scorecard in a new process."""
    seconds = options.alone_seconds
    measure = MeasureSettings(duration_s=seconds, max_duration_s=3.0 * seconds, energy_idle_s=0.01)
    result, _ = launch.run(subject, measure, "latency", batch=1, threads=options.threads)
    entry: dict[str, Any] = result["entry"]
    return entry


def _subject(folder: Path, name: str, options: argparse.Namespace, layers: int) -> Subject:
    return subject(
        folder,
        name,
        model=options.model,
        size=options.size,
        runtime=options.runtime,
        extra_layers=layers,
        extra_width=options.extra_width,
    )


def _calibrate(folder: Path, base: Subject, options: argparse.Namespace) -> tuple[Subject, Ratio]:
    """Try at most four networks, each estimated from the previous; return the nearest to the request."""
    target, layers = options.slower / 100.0, TRIAL_LAYERS
    trials: dict[int, tuple[Subject, Ratio]] = {}
    while len(trials) < 4 and layers not in trials:
        slow = _subject(folder, f"slow{layers}", options, layers)
        ratio = _compare(base, slow, options, options.calibration_seconds)
        trials[layers] = slow, ratio
        if abs(ratio.value - 1.0 - target) <= 0.05 * target:
            break
        layers = max(1, round(layers * target / max(ratio.value - 1.0, target / 4)))
    return min(trials.values(), key=lambda trial: abs(trial[1].value - 1.0 - target))


def _compare(first: Subject, second: Subject, options: argparse.Namespace, seconds: float) -> Ratio:
    measure = MeasureSettings(
        compare_s=seconds, compare_rounds=options.rounds, compare_launches=options.launches
    )
    launches = turns.run(first, second, measure, batch=1, threads=options.threads).launches
    return interleave.compare(launches, resamples=measure.resamples)


if __name__ == "__main__":
    main()
