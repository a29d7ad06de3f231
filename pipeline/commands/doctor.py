"""`kdpipe doctor`: what this machine is, what it can do, and what is missing."""

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

    def tell(text: str) -> None:
        if console.live:
            console.redraw(f"doctor  {text}")
        else:
            console.line(f"doctor  {text}")

    facts = examine(session.store, tell)
    console.redraw("")
    if session.json:
        session.print_json(**facts)
    else:
        console.result(in_words(facts))
    return EXIT_DONE if facts["core"] else EXIT_MACHINE_CANNOT


def in_words(facts: dict[str, Any]) -> str:
    versions = [[name, version or "not installed"] for name, version in facts["versions"].items()]
    stages = [
        [one["name"], "can run" if one["can"] else f"cannot run: {one['why_not']}"] for one in facts["stages"]
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
            "\n".join(["the core stages cannot all run here:", *(f"  {one}" for one in facts["problems"])])
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
        ["CPU flags", " ".join(cpu["flags"]) or "none of those that matter here"],
        ["CPU clock", ", ".join(frequency) or "the system does not tell"],
        ["memory", _memory(memory)],
    ]
    for gpu in facts["gpus"] or [None]:
        rows.append(
            ["GPU", ", ".join(f"{key} {value}" for key, value in gpu.items()) if gpu else "none found"]
        )
    rows += [
        ["store", store["path"] + ("" if store["exists"] else " (not there yet)")],
        ["free disk", "unknown" if store["free_bytes"] is None else size(store["free_bytes"])],
        ["file locks", _works(store["locks"])],
        ["atomic rename", _works(store["rename"])],
        [
            "clock",
            f"{clock['resolution_ns']:g} ns promised, {clock['smallest_step_ns']} ns smallest step seen",
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
    """One line a target; a remedy that several share is given once, under the last of them."""
    width = max(len(one["target"]) for one in targets)
    lines = []
    for one, following in zip(targets, [*targets[1:], {}], strict=True):
        can = "can be built and run"
        if not one["can_build"]:
            can = "cannot be built"
        elif not one["can_run"]:
            can = "can be built, not run"
        why = f": {one['why_not']}" if one["why_not"] else ""
        lines.append(f"{one['target'].ljust(width)}  {can}{why}")
        if one["hint"] and one["hint"] != following.get("hint"):
            lines.append(f"{'':{width}}  hint: {one['hint']}")
    return lines


def _build_line(build: dict[str, Any]) -> str:
    if not build["works"]:
        return f"failed: {build['why_not']}"
    return f"exported, loaded and run in {build['seconds']:.1f} s; {build['comparison']}"


doctor = Command(
    "doctor",
    help="Say what this machine is and can do: versions, hardware, file system, stages, targets.",
    params=[store_option(), json_option()],
    callback=_examine,
    examples=(
        "kdpipe doctor",
        "kdpipe doctor --json | jq .targets",
        "kdpipe doctor --store /mnt/shared/kdpipe",
    ),
    exit_codes=(EXIT_DONE, EXIT_USAGE, EXIT_MACHINE_CANNOT),
)
