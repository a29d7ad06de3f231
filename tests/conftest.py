"""Set before anything loads torch."""

from __future__ import annotations

import os

# As the command line does: threads that wait must not spin for long where others want the cores.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

pytest_plugins = ["tests.processes"]
