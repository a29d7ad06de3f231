"""Runs the small pipeline in a process of its own: `python -m tests.pipeline.kitchen.drive PROFILE STORE`.

Prints one line of JSON: the status of each stage, what was waited for, and the notes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipeline.running.runner import run
from pipeline.store.store import Store
from tests.pipeline.kitchen import STAGES, Notebook, SmallProfile


def main() -> None:
    path, root = Path(sys.argv[1]), Path(sys.argv[2])
    profile = SmallProfile(path, json.loads(path.read_text(encoding="utf-8")))
    notebook = Notebook()
    results = run(profile, Store(root), notebook, stages=STAGES)
    print(
        json.dumps(
            {
                "status": {result.name: result.status for result in results},
                "metrics": {result.name: dict(result.metrics) for result in results},
                "waits": notebook.waits,
                "notes": notebook.notes,
                "modules": sorted(name for name in sys.modules if "." not in name),
            }
        )
    )


if __name__ == "__main__":
    main()
