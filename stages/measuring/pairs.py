"""Which targets are held against each other, and the scorecard's `comparisons`."""

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
from stages.measuring.reference import MODEL as REFERENCE
from stages.measuring.reference import not_timed
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
    """An entry a pair, at the first batch size and thread count; none with `compare_s: 0`.

    earlier: targets of an earlier bundle by name, each held against the student's of that name. One of
    them that does not load is noted and left out: all else is measured by then.
    Raw samples go into the folder `samples`, as int64 (n, 4): launch, round, side, nanoseconds.
    """
    if not settings.compare_s:
        return []
    batch, threads = settings.batch_sizes[0], settings.threads[0]
    found = []
    before = {name: one for name, one in (earlier or {}).items() if one.takes(batch)}
    chosen = chosen_pairs([one for one in subjects if one.takes(batch)], before)
    for done, (first, second) in enumerate(chosen):
        named = {"of": f"{first.slug} and {second.slug}", "comparison": f"{done + 1}/{len(chosen)}"}
        progress.update(done, len(chosen), "comparisons", **named)
        try:
            taken = turns.run(
                first,
                second,
                settings,
                batch=batch,
                threads=threads,
                told=partial(_tell, progress, named),
            )
        except StageError as error:
            if first.target["model"] != REFERENCE:
                raise
            progress.note(not_timed(first.target["target"], f"{error.what}: {error.why}"))
            continue
        launches = taken.launches
        ratio = interleave.compare(launches, resamples=settings.resamples)
        raw = _raw(launches)
        np.save(samples / f"turns-{first.slug}-{second.slug}-b{batch}-t{threads}.npy", raw)
        sides = [np.sort(raw[raw[:, 2] == side, 3]) for side in (0, 1)]
        found.append(
            {
                "runtime": first.target["runtime"],
                "first": _named(first),
                "second": _named(second),
                "batch": batch,
                "threads": threads,
                "launches": len(launches),
                "rounds": settings.compare_rounds,
                "n": [len(side) for side in sides],
                "p50_ms": [ms(percentile_ns(side, 50)) for side in sides],
                "ratio": round(ratio.value, 4),
                "ratio_ci": [round(end, 4) for end in ratio.interval],
                "verdict": ratio.verdict,
                "health": {name: value for name, value in taken.health.items() if name != "flags"},
                "flags": taken.health["flags"],
            }
        )
    progress.update(len(chosen), len(chosen), "comparisons")
    return found


def _tell(progress: Progress, named: Mapping[str, str], done: int, total: int) -> None:
    progress.update(done, total, "rounds", **named)


def chosen_pairs(
    subjects: Sequence[Subject], earlier: Mapping[str, Subject]
) -> list[tuple[Subject, Subject]]:
    """The earlier bundle's target before the student's of the same name; and of each runtime the teacher
    before each of the student's, and its fp32 before each other precision."""
    found = [
        (earlier[one.target["target"]], one)
        for one in subjects
        if one.target["model"] == "student" and one.target["target"] in earlier
    ]
    for runtime in dict.fromkeys(one.target["runtime"] for one in subjects):
        here = [one for one in subjects if one.target["runtime"] == runtime]
        teachers = [one for one in here if one.target["model"] == "teacher"]
        students = [one for one in here if one.target["model"] == "student"]
        plain = [one for one in students if one.target["precision"] == "fp32"]
        found += [(teacher, student) for teacher in teachers for student in students]
        found += [(one, other) for one in plain for other in students if other is not one]
    return found


def _named(subject: Subject) -> dict[str, str]:
    return {"model": subject.target["model"], "target": subject.target["target"]}


def _raw(launches: Sequence[tuple[interleave.Rounds, interleave.Rounds]]) -> np.ndarray:
    rows = [
        np.column_stack([np.full(len(ns), place) for place in (launch, index, side)] + [ns])
        for launch, sides in enumerate(launches)
        for side, rounds in enumerate(sides)
        for index, ns in enumerate(rounds)
    ]
    return np.concatenate(rows).astype(np.int64)
