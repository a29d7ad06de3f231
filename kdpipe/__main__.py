"""The command `kdpipe`; `python -m kdpipe` is the same.

The engine's package has a common name, `pipeline`. It is loaded from the folder beside this package, so that
the command works, and can report a clear error, where another `pipeline` comes first on Python's path.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run this process's command line and return its exit code."""
    if "pipeline" not in sys.modules:
        _load_pipeline()
    from pipeline.shadowing import start

    return start()


def _load_pipeline() -> None:
    spec = PathFinder.find_spec("pipeline", [str(HOME)])
    if spec is None or spec.loader is None:
        sys.exit(f"error: kdpipe is not completely installed: {HOME / 'pipeline'} is missing")
    module = module_from_spec(spec)
    sys.modules["pipeline"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    sys.exit(main())
