"""Several command lines at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.comparing.parallel_commands import CommandLine, core_shares, run_command_lines
from pipeline.on_cores import main


def test_cores_are_shared_out() -> None:
    assert core_shares([0, 1, 2, 3], 4.0, 2) == [[0, 1], [2, 3]]
    assert core_shares([0, 1, 2, 3], 4.0, 3) == [[0], [1], [2]]
    assert core_shares([4, 6], 2.0, 3) == [[4], [6], [4]], "more processes than cores share them"
    assert core_shares(list(range(64)), 2.0, 2) == [[0], [1]], (
        "a container's quota counts, not the host's cores"
    )


def test_every_job_runs_and_its_document_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("data: {name: digits}\n")
    told: dict[str, tuple[int, dict[str, Any]]] = {}
    command_lines = [
        CommandLine("good", ("show", "resnet_to_mobilenet", "--json")),
        CommandLine("bad", ("show", str(tmp_path / "bad.yaml"), "--json")),
        CommandLine("mute", ("--version",)),
    ]
    cores = sorted(os.sched_getaffinity(0))[:1]

    def finished(command_line: CommandLine, code: int, document: dict[str, Any], seconds: float) -> None:
        assert seconds > 0
        told[command_line.title] = (code, document)

    run_command_lines(command_lines, 2, [cores, cores], tmp_path, finished)
    assert told["good"][0] == 0
    assert told["good"][1]["command"] == "show"
    assert told["bad"][0] == 2
    assert "fault" in told["bad"][1]["error"]["what"]
    assert "error" in told["mute"][1]


def test_an_interrupt_ends_the_processes(tmp_path: Path) -> None:
    def finished(command_line: CommandLine, code: int, document: dict[str, Any], seconds: float) -> None:
        assert our_jobs(), "the slower one is still at work"
        raise KeyboardInterrupt

    command_lines = [CommandLine("one", ("--version",)), CommandLine("two", ("doctor", "--json"))]
    with pytest.raises(KeyboardInterrupt):
        run_command_lines(command_lines, 2, [], tmp_path, finished)
    assert our_jobs() == []


def our_jobs() -> list[str]:
    """The command lines of this process's children that run a job."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    commands = [Path(f"/proc/{child}/cmdline").read_text() for child in children]
    return [command for command in commands if "pipeline.on_cores" in command]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
def test_a_job_keeps_to_its_cores(capsys: pytest.CaptureFixture[str]) -> None:
    before = os.sched_getaffinity(0)
    try:
        core = min(before)
        assert main([str(core), "-", "--version"]) == 0
        assert os.sched_getaffinity(0) == {core}
    finally:
        os.sched_setaffinity(0, before)
    assert "kdpipe" in capsys.readouterr().out
