"""Examine this machine for `kdpipe doctor`: read facts, and try what cannot be read.

The trials run in child processes (`stages.runtimes.trial`): a broken library cannot end doctor itself.
"""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import __version__, machine
from pipeline.child_process import environment, last_line, python_command
from pipeline.running.key_facts import resolve
from pipeline.store.file_system import try_file_system
from stages import PACKAGE_CONFLICTS, REPORTED_DISTRIBUTIONS, STAGES, TRIAL

Facts = dict[str, Any]

TRIAL_TIMEOUT_S = 300.0
"""Enough to import a package or to build a network of a few layers: no trial depends on the user's model."""


def examine(store: Path, report_step: Callable[[str], None]) -> Facts:
    """Return everything that `kdpipe doctor` reports. This takes some seconds.

    Args:
        store: The store's folder.
        report_step: Receives the name of each step before it starts.

    Returns:
        The document of `kdpipe doctor --json`. `core` is whether every stage can run here, with one runtime
        at least.

    Raises:
        UsageError: The folder is not a store.
    """
    facts: Facts = {
        "kdpipe": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": distribution_versions(),
        "cpu": machine.cpu(),
        "memory": machine.memory(),
        "gpus": machine.gpus(),
        "clock": machine.clock(),
    }
    report_step("trying the store's file system")
    facts["store"] = try_file_system(store)
    report_step("importing every stage")
    facts["stages"] = try_stages()
    report_step("trying every runtime")
    facts["targets"] = try_targets()
    report_step("exporting a small network and running it")
    facts["build"] = try_build()
    facts["warnings"] = version_conflicts(facts["versions"])
    facts["problems"] = core_problems(facts)
    facts["core"] = not facts["problems"]
    return facts


def core_problems(facts: Facts) -> list[str]:
    """Return the reasons why not all core stages can run here, one sentence each."""
    problems = [f"stage {stage['name']}: {stage['why_not']}" for stage in facts["stages"] if not stage["can"]]
    store = facts["store"]
    problems += [
        f"store: {store[trial]['why_not']}" for trial in ("locks", "rename") if not store[trial]["works"]
    ]
    if not facts["build"]["works"]:
        problems.append(f"small build: {facts['build']['why_not']}")
    return problems


def version_conflicts(versions: dict[str, str | None]) -> list[str]:
    """Return the installed distributions that conflict with each other, one sentence each, with the remedy.

    Args:
        versions: The result of `distribution_versions`.
    """
    conflicts: list[str] = resolve(PACKAGE_CONFLICTS)(versions)
    return conflicts


def distribution_versions() -> dict[str, str | None]:
    """Return the version of each of `stages.REPORTED_DISTRIBUTIONS`, None where it is not installed.

    Import none of them.
    """
    installed = machine.installed_versions(REPORTED_DISTRIBUTIONS)
    return {name: installed.get(name) for name in REPORTED_DISTRIBUTIONS}


def try_stages() -> list[Facts]:
    """Import each stage and its libraries; return for each `name`, `can` and `why_not`."""
    lines, ending = run_trial("stages")
    why_not = {line["stage"]: line["why_not"] for line in lines if "stage" in line}
    return [
        {
            "name": stage.name,
            "can": stage.name in why_not and why_not[stage.name] is None,
            "why_not": why_not.get(stage.name, ending),
        }
        for stage in STAGES
    ]


def try_targets() -> list[Facts]:
    """Ask each runtime whether it works here.

    Returns:
        For each target `target`, `can_build`, `can_run`, `why_not` and `hint`.
    """
    lines, ending = run_trial("runtimes")
    names = next((line["runtimes"] for line in lines if "runtimes" in line), None)
    if names is None:
        return [_no_target("(none)", ending, None)]
    targets = []
    for name in names:
        lines, ending = run_trial("runtime", name)
        answer = next((line for line in lines if line.get("runtime") == name), None)
        if answer is None:
            targets.append(_no_target(name, ending, None))
            continue
        fields = {key: answer[key] for key in ("can_build", "can_run", "why_not", "hint")}
        targets += [{"target": target, **fields} for target in answer["targets"]]
    return targets


def try_build() -> Facts:
    """Export a small network with PyTorch, run it in a runtime, and compare the outputs.

    Returns:
        `works`; if it works `seconds`, `max_difference` and `comparison` (in words), otherwise `why_not`.
    """
    lines, ending = run_trial("build")
    return next((line for line in lines if "works" in line), {"works": False, "why_not": ending})


def _no_target(target: str, why_not: str, hint: str | None) -> Facts:
    return {"target": target, "can_build": False, "can_run": False, "why_not": why_not, "hint": hint}


def run_trial(*words: str) -> tuple[list[Facts], str]:
    """Run `stages.runtimes.trial` in a child process.

    Args:
        words: Its command-line arguments.

    Returns:
        The JSON lines that it printed, and how it ended, in words.
    """
    try:
        done = subprocess.run(
            python_command(TRIAL, *words),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TRIAL_TIMEOUT_S,
            env=environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [], f"no answer within {TRIAL_TIMEOUT_S:.0f} s"
    lines = []
    for text in done.stdout.splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict):
                lines.append(line)
    return lines, last_line(done.stderr) or f"its process ended with status {done.returncode}"
