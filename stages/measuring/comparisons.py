"""The scorecard's `comparisons`: which targets are timed in turns, and the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import StageError
from pipeline.stage import Progress
from stages.measuring import interleave, turns
from stages.measuring.latency import ms
from stages.measuring.launch import Subject
from stages.measuring.reference_bundle import MODEL as REFERENCE
from stages.measuring.reference_bundle import not_timed
from stages.measuring.settings import MeasureSettings
from stages.statistics.percentiles import percentile_ns


def measure(
    subjects: Sequence[Subject],
    settings: MeasureSettings,
    samples: Path,
    progress: Progress,
    *,
    earlier: Mapping[str, Subject] | None = None,
) -> list[dict[str, Any]]:
    """Time pairs of targets in turns, at the first batch size and thread count.

    Args:
        subjects: The targets.
        settings: How to measure; with `compare_s: 0` there are no comparisons.
        samples: The folder for raw samples, int64 (n, 4): launch, round, side, nanoseconds.
        progress: For updates and notes.
        earlier: Targets of an earlier bundle by name; each is timed against the student's target of the same
            name. One that cannot be loaded is noted and left out, because all else has been measured by then.

    Returns:
        One entry per pair.

    Raises:
        StageError: A worker hung, ended without a result, or reported an error.
    """
    if not settings.compare_s:
        return []
    batch, threads = settings.batch_sizes[0], settings.threads[0]
    entries = []
    earlier = {name: subject for name, subject in (earlier or {}).items() if subject.accepts_batch(batch)}
    chosen = chosen_pairs([subject for subject in subjects if subject.accepts_batch(batch)], earlier)
    for done, (first, second) in enumerate(chosen):
        names = {"of": f"{first.slug} and {second.slug}", "comparison": f"{done + 1}/{len(chosen)}"}
        progress.update(done, len(chosen), "comparisons", **names)
        try:
            timed = turns.run(
                first,
                second,
                settings,
                batch=batch,
                threads=threads,
                on_turn=partial(_report_rounds, progress, names),
            )
        except StageError as error:
            if first.target["model"] != REFERENCE:
                raise
            progress.note(not_timed(first.target["target"], f"{error.what}: {error.why}"))
            continue
        launches = timed.launches
        ratio = interleave.compare(launches, resamples=settings.resamples)
        raw = _raw(launches)
        np.save(samples / f"turns-{first.slug}-{second.slug}-b{batch}-t{threads}.npy", raw)
        sides = [np.sort(raw[raw[:, 2] == side, 3]) for side in (0, 1)]
        entries.append(
            {
                "runtime": first.target["runtime"],
                "first": _names(first),
                "second": _names(second),
                "batch": batch,
                "threads": threads,
                "launches": len(launches),
                "rounds": settings.compare_rounds,
                "n": [len(side) for side in sides],
                "p50_ms": [ms(percentile_ns(side, 50)) for side in sides],
                "ratio": round(ratio.value, 4),
                "ratio_ci": [round(end, 4) for end in ratio.interval],
                "verdict": ratio.verdict,
                "health": {name: value for name, value in timed.health.items() if name != "flags"},
                "flags": timed.health["flags"],
            }
        )
    progress.update(len(chosen), len(chosen), "comparisons")
    return entries


def _report_rounds(progress: Progress, names: Mapping[str, str], done: int, total: int) -> None:
    progress.update(done, total, "rounds", **names)


def chosen_pairs(
    subjects: Sequence[Subject], earlier: Mapping[str, Subject]
) -> list[tuple[Subject, Subject]]:
    """Return the pairs to time: the first target of each is the one that the second is compared with.

    The earlier bundle's target with the student's of the same name. For each runtime, the teacher with each
    of the student's targets, and the student's fp32 with each of its other precisions.

    Args:
        subjects: The targets of this profile.
        earlier: Targets of an earlier bundle by name.
    """
    pairs = [
        (earlier[subject.target["target"]], subject)
        for subject in subjects
        if subject.target["model"] == "student" and subject.target["target"] in earlier
    ]
    for runtime in dict.fromkeys(subject.target["runtime"] for subject in subjects):
        of_runtime = [subject for subject in subjects if subject.target["runtime"] == runtime]
        teachers = [subject for subject in of_runtime if subject.target["model"] == "teacher"]
        students = [subject for subject in of_runtime if subject.target["model"] == "student"]
        fp32 = [subject for subject in students if subject.target["precision"] == "fp32"]
        pairs += [(teacher, student) for teacher in teachers for student in students]
        pairs += [(plain, other) for plain in fp32 for other in students if other is not plain]
    return pairs


def _names(subject: Subject) -> dict[str, str]:
    return {"model": subject.target["model"], "target": subject.target["target"]}


def _raw(launches: Sequence[tuple[interleave.Rounds, interleave.Rounds]]) -> np.ndarray:
    rows = [
        np.column_stack([np.full(len(ns), number) for number in (launch, index, side)] + [ns])
        for launch, sides in enumerate(launches)
        for side, rounds in enumerate(sides)
        for index, ns in enumerate(rounds)
    ]
    return np.concatenate(rows).astype(np.int64)
