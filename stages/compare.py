"""compare: what each method gained over the student alone on several seeds, with intervals.

It is not among the stages of `kdpipe run`. It reads many artefacts of `distill`, which `kdpipe compare`
brings up to date.
"""

from __future__ import annotations

import numpy as np

from pipeline.json_files import write_json
from pipeline.stage import Context, Metrics
from stages.comparing.judging import predict
from stages.comparing.summary import comparison
from stages.reporting.comparison import page


def run(context: Context) -> Metrics:
    """Write `comparison.json`, `comparison.html` and `predictions.npy` (docs/reference/artefacts.md).

    `context.settings.comparison` lists what to compare: `split`, `reference`, `unfit`, `title`, and `runs`,
    each with the name of its folder in `context.inputs` as `input` (None for a run that failed).
    """
    settings = context.settings
    request = settings.comparison
    folders = [context.inputs[run["input"]] for run in request["runs"] if run["failed"] is None]
    predictions = predict(
        settings,
        request["split"],
        context.inputs["train"],
        folders,
        lambda done, total: context.progress.update(done, total, unit="images"),
    )
    document = comparison(request["runs"], predictions, request)
    np.save(context.output / "predictions.npy", predictions.table())
    write_json(context.output / "comparison.json", document)
    html = page(request["title"], document)
    (context.output / "comparison.html").write_text(html, encoding="utf-8")
    return {"verdict": document["answer"]["verdict"], "method": document["answer"]["method"]}
