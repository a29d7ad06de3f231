"""What a device can run, and what its figures depend on: from the facts that the program there reports.

The facts are those of `stages.devices.there.facts`. Light: standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.devices.requests import is_built_there

CHANGING_FACTS = ("folder", "load_average")
"""Facts about a path, or that change from minute to minute."""


def why_unable(facts: Mapping[str, Any], targets: Sequence[str]) -> dict[str, str | None]:
    """Return, by target, why it cannot be measured on a device; None if it can."""
    reasons: dict[str, str | None] = {}
    for target in targets:
        runtime = target.rpartition("-")[0]
        unknown = {"error": f"kdpipe cannot run {runtime} on devices"}
        ability = facts["runtimes"].get(runtime, unknown)
        why = ability.get("error")
        if runtime == "tensorrt" and why and facts["trtexec"]:
            why = facts["gpu"].get("error")
        elif is_built_there(target) and not why and not ability["runs"]:
            built = "is built there, but not run" if ability["builds"] else "cannot be built"
            why = f"{built}: {ability['runs_why_not'] or ability['builds_why_not']}"
        reasons[target] = facts["numpy"].get("error") or why
    return reasons


def key_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that a device's figures depend on: part of the measurement's key."""
    machine = facts["machine"]
    return {
        **{fact: machine[fact] for fact in ("cpu", "architecture", "cores", "memory_gib", "gpu")},
        "board": facts["board"],
        "cuda": facts["gpu"],
        "numpy": facts["numpy"],
        "runtimes": facts["runtimes"],
        "trtexec": facts["trtexec_version"],
    }


def lasting_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts without paths and without what changes from minute to minute."""
    lasting = {name: value for name, value in facts.items() if name not in CHANGING_FACTS}
    return {**lasting, "python": {"version": facts["python"]["version"]}, "trtexec": bool(facts["trtexec"])}


def software_rows(facts: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of `kdpipe device check` about numpy, the runtimes and their programs."""
    rows = [["numpy", _version(facts["numpy"])]]
    rows += [[name, _version(runtime)] for name, runtime in facts["runtimes"].items()]
    path = facts["trtexec"]
    return [*rows, ["trtexec", f"{facts['trtexec_version']}  {path}" if path else "not installed"]]


def _version(facts: Mapping[str, Any]) -> str:
    return str(facts.get("version") or f"not usable: {facts['error']}")
