"""`kdpipe doctor`: report this machine's hardware and versions, and the stages and targets that work."""

from __future__ import annotations

from typing import Any

import click

from pipeline.commands.base import Command
from pipeline.commands.options import json_option, store_option
from pipeline.console.session import Session, store_folder
from pipeline.console.tables import columns, size
from pipeline.doctor import examine
from pipeline.errors import EXIT_DONE, EXIT_MACHINE_CANNOT, EXIT_USAGE


def _examine(store: str | None) -> int:
    session = click.get_current_context().ensure_object(Session)
    session.store = store_folder(store)
    console = session.console

    def report_step(text: str) -> None:
        if console.live:
            console.redraw(f"doctor  {text}")
        else:
            console.line(f"doctor  {text}")

    facts = examine(session.store, report_step)
    console.redraw("")
    if session.json:
        session.print_json(**facts)
    else:
        console.result(doctor_text(facts))
    return EXIT_DONE if facts["core"] else EXIT_MACHINE_CANNOT


def doctor_text(facts: dict[str, Any]) -> str:
    """Return the text of the facts that `examine` returned."""
    versions = [[name, version or "not installed"] for name, version in facts["versions"].items()]
    stages = [
        [stage["name"], "can run" if stage["can"] else f"cannot run: {stage['why_not']}"]
        for stage in facts["stages"]
    ]
    parts = [
        _section("machine", columns(_machine(facts), "ll")),
        _section("versions", columns(versions, "ll")),
        _section("stages", columns(stages, "ll")),
        _section("targets", "\n".join(_target_lines(facts["targets"]))),
        _section("small build", _build_line(facts["build"])),
    ]
    if facts["warnings"]:
        parts.append(_section("warnings", "\n".join(facts["warnings"])))
    if facts["core"]:
        parts.append("every stage can run here")
    else:
        parts.append(
            "\n".join(
                ["the core stages cannot all run here:", *(f"  {problem}" for problem in facts["problems"])]
            )
        )
    return "\n\n".join(parts)


def _section(title: str, body: str) -> str:
    return "\n".join([title, *(f"  {line}" for line in body.splitlines())])


def _machine(facts: dict[str, Any]) -> list[list[str]]:
    cpu, memory, store, clock = facts["cpu"], facts["memory"], facts["store"], facts["clock"]
    usable = f"{cpu['cores_usable']:g} of {cpu['cores']} cores usable"
    frequency = [f"governor {cpu['governor']}"] if cpu["governor"] else []
    frequency += [f"{cpu['frequency_mhz']} MHz now"] if cpu["frequency_mhz"] else []
    rows = [
        ["kdpipe", f"{facts['kdpipe']} on Python {facts['python']}"],
        ["system", facts["system"]],
        ["CPU", f"{cpu['model']}, {usable}"],
        ["CPU flags", " ".join(cpu["flags"]) or "none of those that kdpipe uses"],
        ["CPU clock", ", ".join(frequency) or "not reported by the system"],
        ["memory", _memory(memory)],
    ]
    rows += [
        ["GPU", ", ".join(f"{key} {value}" for key, value in gpu.items()) if gpu else "none found"]
        for gpu in facts["gpus"] or [None]
    ]
    rows += [
        ["store", store["path"] + ("" if store["exists"] else " (does not exist yet)")],
        ["free disk", "unknown" if store["free_bytes"] is None else size(store["free_bytes"])],
        ["file locks", _works(store["locks"])],
        ["atomic rename", _works(store["rename"])],
        [
            "clock",
            f"{clock['resolution_ns']:g} ns nominal resolution, "
            f"{clock['smallest_step_ns']} ns smallest measured step",
        ],
    ]
    return rows


def _memory(memory: dict[str, Any]) -> str:
    if not memory["total_bytes"]:
        return "unknown"
    limit = f", this container may use {size(memory['limit_bytes'])}" if memory["limit_bytes"] else ""
    return f"{size(memory['total_bytes'])}, {size(memory['available_bytes'] or 0)} available{limit}"


def _works(outcome: dict[str, Any]) -> str:
    return "work" if outcome["works"] else f"do not work: {outcome['why_not']}"


def _target_lines(targets: list[dict[str, Any]]) -> list[str]:
    """Return a line for each target; a hint that successive targets share is printed once, after the last."""
    width = max(len(target["target"]) for target in targets)
    lines = []
    for target, following in zip(targets, [*targets[1:], {}], strict=True):
        ability = "can be built and run"
        if not target["can_build"]:
            ability = "cannot be built"
        elif not target["can_run"]:
            ability = "can be built, not run"
        why = f": {target['why_not']}" if target["why_not"] else ""
        lines.append(f"{target['target'].ljust(width)}  {ability}{why}")
        if target["hint"] and target["hint"] != following.get("hint"):
            lines.append(f"{'':{width}}  hint: {target['hint']}")
    return lines


def _build_line(build: dict[str, Any]) -> str:
    if not build["works"]:
        return f"failed: {build['why_not']}"
    seconds = f"{build['seconds']:.1f} s"
    return f"a small network was exported, loaded and run in {seconds}; {build['comparison']}"


doctor = Command(
    "doctor",
    help="Check this machine: versions, hardware, file system, and the stages and targets that work here.",
    params=[store_option(), json_option()],
    callback=_examine,
    examples=(
        "kdpipe doctor",
        "kdpipe doctor --json | jq .targets",
        "kdpipe doctor --store /mnt/shared/kdpipe",
    ),
    exit_codes=(EXIT_DONE, EXIT_USAGE, EXIT_MACHINE_CANNOT),
)
