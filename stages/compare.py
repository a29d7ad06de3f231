"""Compares methods: what each gained on the student alone over several seeds, and how sure that is.

Not a stage of the line: it reads many artefacts of `distill`, which `kdpipe compare` brings up to date.
"""

from __future__ import annotations

import numpy as np

from pipeline.json_files import write_json
from pipeline.stage import Context, Metrics
from stages.comparing.judging import answers
from stages.comparing.summary import comparison
from stages.reporting.comparison import page


def run(context: Context) -> Metrics:
    """Leaves `comparison.json`, `comparison.html` and `predictions.npy` (docs/reference/artefacts.md).

    `context.settings.comparison` says what is compared: `split`, `reference`, `unfit`, `title`, and `runs`,
    each with the name of its folder in `context.inputs` as `input` (None for a run that failed).
    """
    settings = context.settings
    asked = settings.comparison
    folders = [context.inputs[run["input"]] for run in asked["runs"] if run["failed"] is None]
    found = answers(
        settings,
        asked["split"],
        context.inputs["train"],
        folders,
        lambda done, total: context.progress.update(done, total, unit="images"),
    )
    document = comparison(asked["runs"], found, asked)
    np.save(context.output / "predictions.npy", found.table())
    write_json(context.output / "comparison.json", document)
    html = page(asked["title"], document)
    (context.output / "comparison.html").write_text(html, encoding="utf-8")
    return {"verdict": document["answer"]["verdict"], "method": document["answer"]["method"]}
