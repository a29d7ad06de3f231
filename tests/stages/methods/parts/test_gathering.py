from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.methods.settings import MethodSettings
from tests.stages.methods import two_processes


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, torch.Tensor]]]:
    """What two processes that share a batch found, in order of rank."""
    folder = tmp_path_factory.mktemp("two")
    root = Path(__file__).parents[4]
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


@pytest.fixture(scope="module")
def whole() -> list[dict[str, torch.Tensor]]:
    """What this process finds for the whole batch."""
    return two_processes.results(0, two_processes.IMAGES)


@pytest.mark.parametrize(
    "case", enumerate(two_processes.CASES), ids=lambda case: two_processes.title(case[1])
)
def test_two_halves_are_worth_one_whole_batch(
    halves: list[list[dict[str, torch.Tensor]]],
    whole: list[dict[str, torch.Tensor]],
    case: tuple[int, MethodSettings],
) -> None:
    expected_of, (first, second) = whole[case[0]], (half[case[0]] for half in halves)
    assert expected_of.keys() == first.keys() == second.keys()
    assert any(name.startswith("student ") for name in expected_of)
    for name, expected in expected_of.items():
        if name.startswith("student "):
            # Each process's images have their rows; the mean over processes halves the losses' sum.
            found = torch.cat([first[name], second[name]]) / 2
        else:
            found = (first[name] + second[name]) / 2
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6), name
        if name.startswith("state "):
            assert torch.equal(first[name], second[name]), name
