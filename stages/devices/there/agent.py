"""The program on the device: one verb a call, request and answer in JSON.

    python program.pyz VERB     the request is one JSON document on standard input
    python program.pyz receive REQUEST      standard input is the file's bytes

While a target is measured, lines that begin with `BEAT` report the progress. The answer is the last line on
standard output that begins with `ANSWER`: shells and libraries may print before it. A fault is an answer too:
{"fault": {what, where, why, hint}}.
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
    """Run the verb of the command line, and write the answer.

    Returns:
        The exit code.
    """
    # adbd hangs up when the link breaks; the work that has begun, here and in child processes, goes on.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    channel = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints goes to standard error
    verb = sys.argv[1]
    if verb == "work":
        from stages.devices.there import worker

        return worker.main(sys.argv[2])
    request = json.loads(sys.argv[2] if verb == "receive" else sys.stdin.buffer.read() or b"{}")

    def report(beat: Beat) -> None:
        with contextlib.suppress(OSError):  # the link broke: the work goes on
            os.write(channel, f"\n{BEAT}{beat.line()}\n".encode())

    try:
        answer = _measure(request, report) if verb == "measure" else VERBS[verb](request)
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


def _file_verb(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def call(request: dict[str, Any]) -> dict[str, Any]:
        from stages.devices.there import files

        function: Callable[[dict[str, Any]], dict[str, Any]] = getattr(files, name)
        return function(request)

    return call


def _release_verb(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def call(request: dict[str, Any]) -> dict[str, Any]:
        from stages.devices.there import releases

        function: Callable[[dict[str, Any]], dict[str, Any]] = getattr(releases, name)
        return function(request)

    return call


def _measure(request: dict[str, Any], report: Callable[[Beat], None]) -> dict[str, Any]:
    from stages.devices.there import measuring

    return measuring.measure(request, report)


VERBS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "facts": _facts,
    "have": _file_verb("have"),
    "receive": _file_verb("receive"),
    "assemble": _file_verb("assemble"),
    "fetch": _file_verb("fetch"),
    "remove": _file_verb("remove"),
    "keep_newest": _file_verb("keep_newest"),
    "selftest": _release_verb("selftest"),
    "switch": _release_verb("switch"),
    "discard": _release_verb("discard"),
    "releases": _release_verb("releases"),
}
