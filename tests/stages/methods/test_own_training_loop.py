"""examples/own_training_loop.py trains with MSDCRD in a loop that is not ours."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.command import ROOT, environment


def test_the_example_trains_a_student_that_reads_digits() -> None:
    finished = subprocess.run(
        [sys.executable, ROOT / "examples" / "own_training_loop.py"],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env=environment(OMP_NUM_THREADS="1"),
    )
    assert finished.returncode == 0, finished.stderr
    losses = [float(loss) for loss in re.findall(r"^epoch \d: loss ([\d.]+)$", finished.stdout, re.M)]
    assert len(losses) == 3
    assert losses[-1] < 0.7 * losses[0]
    accuracies = dict(re.findall(r"^(\w+) accuracy: ([\d.]+)$", finished.stdout, re.M))
    assert accuracies.keys() == {"teacher", "student"}
    # Guessing is right in one image of ten.
    assert all(float(accuracy) > 0.5 for accuracy in accuracies.values())
