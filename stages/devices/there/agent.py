"""The program on the device: one verb a call, asked and answered in JSON.

    python program.pyz VERB     the request is one JSON document on standard input
    python program.pyz receive REQUEST      standard input is the file's bytes

While a target is measured, lines that begin with `BEAT` say how far it is. The answer is the last line on
standard output that begins with `ANSWER`: shells and libraries may print before it. A fault is an answer as
well: {"fault": {what, where, why, hint}}.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from pipeline.errors import KdpipeError
from pipeline.heartbeat import Beat

ANSWER = "\x1ekdpipe "
BEAT = "\x1ekdpipe-beat "


def main() -> int:
    # adbd hangs up where the link breaks; what was begun, here and in processes from here, goes on.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    channel = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints goes to standard error
    verb = sys.argv[1]
    if verb == "work":
        from stages.devices.there import worker

        return worker.main(sys.argv[2])
    request = json.loads(sys.argv[2] if verb == "receive" else sys.stdin.buffer.read() or b"{}")

    def tell(beat: Beat) -> None:
        with contextlib.suppress(OSError):  # the link broke: what was begun goes on
            os.write(channel, f"\n{BEAT}{beat.line()}\n".encode())

    try:
        answer = _measure(request, tell) if verb == "measure" else VERBS[verb](request)
    except KdpipeError as error:
        answer = {"fault": error.as_json()}
    except OSError as error:
        why = f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
        answer = {"fault": {"what": "The device cannot read or write a file", "why": why}}
    with os.fdopen(channel, "w", encoding="utf-8") as stream:
        stream.write(f"\n{ANSWER}{json.dumps(answer)}\n")
    return 0


def _facts(request: dict[str, Any]) -> dict[str, Any]:
    from stages.devices.there import facts

    return facts.facts(request["folder"])


def _of_files(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def call(request: dict[str, Any]) -> dict[str, Any]:
        from stages.devices.there import files

        function: Callable[[dict[str, Any]], dict[str, Any]] = getattr(files, name)
        return function(request)

    return call


def _of_releases(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def call(request: dict[str, Any]) -> dict[str, Any]:
        from stages.devices.there import releases

        function: Callable[[dict[str, Any]], dict[str, Any]] = getattr(releases, name)
        return function(request)

    return call


def _measure(request: dict[str, Any], tell: Callable[[Beat], None]) -> dict[str, Any]:
    from stages.devices.there import measuring

    return measuring.measure(request, tell)


VERBS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "facts": _facts,
    "have": _of_files("have"),
    "receive": _of_files("receive"),
    "assemble": _of_files("assemble"),
    "fetch": _of_files("fetch"),
    "remove": _of_files("remove"),
    "keep_newest": _of_files("keep_newest"),
    "selftest": _of_releases("selftest"),
    "switch": _of_releases("switch"),
    "discard": _of_releases("discard"),
    "releases": _of_releases("releases"),
}
