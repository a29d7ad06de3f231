"""examples/own_training_loop.py trains with MSDCRD in a loop that is not ours."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

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


def test_the_loop_of_the_documentation_runs() -> None:
    text = (ROOT / "docs" / "reference" / "methods.md").read_text(encoding="utf-8")
    section = text.partition("## Using a method in your own training loop")[2]
    code = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)[0]
    namespace: dict[str, Any] = {}
    exec(compile(code, "docs/reference/methods.md", "exec"), namespace)
    assert namespace["loss"].isfinite()
    assert all(parameter.grad is not None for parameter in namespace["method"].parameters())
    assert all(parameter.grad is None for parameter in namespace["teacher"].parameters())
