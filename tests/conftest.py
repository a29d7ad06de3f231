"""Set before anything loads torch."""

from __future__ import annotations

import os

# As the command line does: threads that wait must not spin where others want the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
