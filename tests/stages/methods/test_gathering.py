from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.stages.methods import two_processes


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, torch.Tensor]]]:
    """What two processes that share a batch found, in order of rank."""
    folder = tmp_path_factory.mktemp("two")
    root = Path(__file__).parents[3]
    outputs = [folder / f"{rank}.pt" for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", two_processes.__name__, str(rank), str(folder / "meet"), str(output)],
            cwd=root,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, output in enumerate(outputs)
    ]
    for process in processes:
        _, complaint = process.communicate(timeout=300)
        assert process.returncode == 0, complaint
    return [torch.load(output) for output in outputs]


@pytest.mark.parametrize("case", range(len(two_processes.CASES)), ids=lambda n: str(two_processes.CASES[n]))
def test_two_halves_are_worth_one_whole_batch(halves: list[list[dict[str, torch.Tensor]]], case: int) -> None:
    whole = two_processes.results(0, two_processes.IMAGES)[case]
    first, second = (half[case] for half in halves)
    assert whole.keys() == first.keys() == second.keys()
    for name, expected in whole.items():
        if name == "map":
            # Each process's images have their rows; the mean over processes halves the losses' sum.
            found = torch.cat([first[name], second[name]]) / 2
        else:
            found = (first[name] + second[name]) / 2
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6), name
