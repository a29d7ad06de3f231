"""How often the same build is called different, and how often a real slow-down of 10 % is found.

    python benchmarks/bench_latency_gate.py [--repeats N] [--seconds S] [--runtime NAME] [--slower PERCENT]

Two targets are timed in turns just as the measure stage does it (`measure.compare_s`, ...), N times: a build
against itself, and against the same network with added convolutions. How many it takes for the
asked slow-down is found by measuring, and the slow-down that came of it is measured apart, longer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from latency_subjects import subject, where

from stages.measuring import interleave, turns
from stages.measuring.interleave import Ratio
from stages.measuring.intervals import wilson_interval
from stages.measuring.launch import Subject
from stages.measuring.settings import MeasureSettings

TRIAL_LAYERS = 16
"""Added layers of the first trial, from which the right number is reckoned."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one comparison (measure.compare_s)")
    parser.add_argument("--calibration-seconds", type=float, default=20.0)
    parser.add_argument("--launches", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runtime", default="onnxruntime", choices=("onnxruntime", "openvino"))
    parser.add_argument("--model", default="mobilenetv3_small_100")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--extra-width", type=int, default=8, help="channels of the added convolutions")
    parser.add_argument("--slower", type=float, default=10.0, help="the slow-down to find, per cent")
    options = parser.parse_args()
    print(
        f"{options.model}, {options.size} pixels, batch 1, fp32, {options.threads} threads, {options.runtime}"
    )
    print(f"{options.launches} launches of {options.rounds} rounds, {options.seconds:g} s in all")
    print("\n".join(where()), end="\n\n")
    with tempfile.TemporaryDirectory(prefix="kdpipe-bench-") as folder:
        base = _subject(Path(folder), "base", options, 0)
        same = _subject(Path(folder), "same", options, 0)
        slow, truth = _calibrated(Path(folder), base, options)
        low, high = truth.interval
        print(f"slow-down made: {truth.value:.4f} [{low:.4f}, {high:.4f}], {options.slower:g} % was asked")
        _rows("same build", base, same, options)
        _rows("slowed down", base, slow, options)


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


def _calibrated(folder: Path, base: Subject, options: argparse.Namespace) -> tuple[Subject, Ratio]:
    """Of four networks at most, each reckoned from the one before, the one nearest to what was asked."""
    wanted, layers = options.slower / 100.0, TRIAL_LAYERS
    tried: dict[int, tuple[Subject, Ratio]] = {}
    while len(tried) < 4 and layers not in tried:
        slow = _subject(folder, f"slow{layers}", options, layers)
        found = _compare(base, slow, options, options.calibration_seconds)
        tried[layers] = slow, found
        if abs(found.value - 1.0 - wanted) <= 0.05 * wanted:
            break
        layers = max(1, round(layers * wanted / max(found.value - 1.0, wanted / 4)))
    return min(tried.values(), key=lambda one: abs(one[1].value - 1.0 - wanted))


def _compare(first: Subject, second: Subject, options: argparse.Namespace, seconds: float) -> Ratio:
    measure = MeasureSettings(
        compare_s=seconds, compare_rounds=options.rounds, compare_launches=options.launches
    )
    launches = turns.run(first, second, measure, batch=1, threads=options.threads)
    return interleave.compare(launches, resamples=measure.resamples)


def _rows(name: str, first: Subject, second: Subject, options: argparse.Namespace) -> None:
    """How often each verdict fell: of the same build, all but `cannot tell` are false alarms."""
    found = [_compare(first, second, options, options.seconds) for _ in range(options.repeats)]
    said = Counter(one.verdict for one in found)
    ratios = sorted(one.value for one in found)
    print(f"{name}: ratio {ratios[0]:.3f} .. {ratios[len(ratios) // 2]:.3f} .. {ratios[-1]:.3f}")
    for verdict in ("slower", "faster", "cannot tell"):
        low, high = wilson_interval(said[verdict], len(found))
        print(
            f"  {verdict:<12} {said[verdict]:3d} of {len(found)} = {100 * said[verdict] / len(found):5.1f} % "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
