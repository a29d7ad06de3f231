"""Wins back what an INT8 file lost: a short fine-tune under its rounding, and the same file made again.

What trains is imported once a file is to be recovered, and not before.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pipeline.errors import StageError
from pipeline.stage import Context
from stages.onnx_files.quantized_proof import paired_accuracy
from stages.onnx_files.quantizing import prepare
from stages.onnx_files.ranges import Ranges, find_ranges
from stages.quantizing.bench import Bench, content, top1
from stages.quantizing.making import Judged, Made, judge, likeness, make


def recovered(
    made: Made, judged: Judged, bench: Bench, context: Context
) -> tuple[Made, Judged, dict[str, Any] | None]:
    """The INT8 file to go on with: the given one, or that of the student fine-tuned under its rounding.

    The fine-tuned file is taken if it is right on more validation images and still predicts as the float
    file for `quantize.agreement` of them, without which no file passes; then the float network that it
    was made from is left beside it as `student.tuned.RECIPE.onnx`. The third value is what is to
    be told of it in `calibration.json`; None if there was no fine-tune (`quantize.distill.when`). Reads
    the artefacts `train` and `distill`. Raises StageError if the fine-tune diverges, or the
    fine-tuned student exports to another graph.
    """
    own = context.settings.quantize.distill
    if own.when == "never" or (own.when == "missed" and not judged.missed):
        return made, judged, None
    folder = context.work / "quantization-aware" / made.recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    found = _tuned(made, folder, bench, context)
    facts = {"when": own.when, "learn_ranges": own.learn_ranges, **found["facts"]}
    if "ranges" not in found:
        bench.progress.note(
            f"{made.recipe.file}: no fine-tune, as none of its weights is that of a layer of the student"
        )
        return made, judged, {**facts, "kept": False}
    source = _source(folder / "tuned.onnx", made)
    ranges = with_ranges(_calibrated(source, made, bench), found["ranges"])
    again = make(source, ranges, made.recipe, made.kept_float, bench)
    judged_again = judge(again, bench)
    facts |= _compared(judged, judged_again, bench)
    _tell(made, facts, bench)
    if not facts["kept"]:
        return made, judged, facts
    tuned = context.output / f"student.tuned.{made.recipe.name}.onnx"
    tuned.write_bytes((folder / "tuned.onnx").read_bytes())
    return again, judged_again, facts


def _tuned(made: Made, folder: Path, bench: Bench, context: Context) -> dict[str, Any]:
    """What the fine-tune gave (`tuning.tune`); leaves `tuned.onnx` in the folder."""
    from stages.quantization_aware.tuning import Job, tune

    (folder / "before.onnx").write_bytes(content(made.model))
    (folder / "graph.onnx").write_bytes(content(made.source))
    job = Job(
        name=made.recipe.name,
        int8=folder / "before.onnx",
        graph=folder / "graph.onnx",
        tuned=folder / "tuned.onnx",
        checkpoints=folder / "checkpoints",
        card=bench.card,
    )
    return tune(context, job)


def _source(file: Path, made: Made) -> onnx.ModelProto:
    """The fine-tuned float graph, prepared; node for node the one that the first file was made from."""
    source = prepare(onnx.load(file))
    nodes = [
        [(node.name, node.op_type, *node.output) for node in model.graph.node]
        for model in (made.source, source)
    ]
    if nodes[0] != nodes[1]:
        odd = next((pair for pair in zip(*nodes, strict=False) if pair[0] != pair[1]), None)
        raise StageError(
            "The fine-tuned student exports to another graph than the student.",
            where=f"stage quantize, {made.recipe.file}",
            why=f"{odd[1][0]} stands where {odd[0][0]} was"
            if odd is not None
            else f"{len(nodes[1])} nodes instead of {len(nodes[0])}",
            hint="--set quantize.distill.when=never",
        )
    return source


def _calibrated(source: onnx.ModelProto, made: Made, bench: Bench) -> Ranges:
    """Fresh ranges of the fine-tuned graph, found as the first file's were: for what was not simulated."""
    method = made.ranges.method
    feeds = functools.partial(bench.calibration_feeds, method.name)
    return find_ranges(source, made.ranges.tensors, feeds, [method])[method]


def with_ranges(ranges: Ranges, learned: Mapping[str, tuple[float, float]]) -> Ranges:
    """The ranges, with those that were learned in the place of the calibrated ones."""
    ends = [
        learned.get(name, (low, high))
        for name, low, high in zip(ranges.tensors, ranges.low, ranges.high, strict=True)
    ]
    low, high = np.array(ends, dtype=np.float64).reshape(-1, 2).T
    return replace(ranges, low=low, high=high)


def _compared(before: Judged, after: Judged, bench: Bench) -> dict[str, Any]:
    """Top-1 of the float file, and of the INT8 file before and after, and what came back of the loss."""
    float_top1 = top1(bench.float_validation, bench.labels)
    had, has = top1(before.logits, bench.labels), top1(after.logits, bench.labels)
    lost = float_top1 - had
    agreement = likeness(after.logits, bench.float_validation)[0]
    return {
        "float_top1": float_top1,
        "before_top1": had,
        "after_top1": has,
        "after_agreement": agreement,
        "gain": paired_accuracy(after.logits, before.logits, bench.labels),
        "recovered_share": round((has - had) / lost, 4) if lost > 0 else None,
        "kept": has > had and agreement >= bench.settings.agreement,
    }


def _tell(made: Made, facts: Mapping[str, Any], bench: Bench) -> None:
    figures = (
        f"top-1 on {len(bench.labels)} validation images: float {facts['float_top1']:.2f} %, "
        f"INT8 {facts['before_top1']:.2f} %, fine-tuned {facts['after_top1']:.2f} %"
    )
    if facts["kept"]:
        kept = "kept"
    elif facts["after_top1"] <= facts["before_top1"]:
        kept = "no better, so it is not kept"
    else:
        kept = (
            f"but it predicts as the float file for only {facts['after_agreement']:.1f} % of them, less than "
            f"quantize.agreement ({bench.settings.agreement:g} %), so it is not kept"
        )
    bench.progress.note(f"{made.recipe.file}, quantization-aware distillation: {figures}; {kept}")
