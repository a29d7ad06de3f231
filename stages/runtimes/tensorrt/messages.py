"""The messages of the SDK's logger: it reports failure by returning None, and logs the reason. Light."""

from __future__ import annotations

from typing import Any

MOST_WARNINGS = 20


class Messages:
    """The errors and warnings that the SDK has logged.

    Attributes:
        logger: what the SDK's objects take. It lives as long as they do.
    """

    def __init__(self, trt: Any) -> None:
        """Make a logger of the module `tensorrt` or `tensorrt_rtx`."""
        self._base = trt.ILogger
        self._lines: list[tuple[int, str]] = []

        def log(_logger: Any, severity: Any, message: str) -> None:
            if int(severity) <= int(self._base.Severity.WARNING):
                self._lines.append((int(severity), message))

        methods = {"__init__": lambda logger: self._base.__init__(logger), "log": log}
        self.logger: Any = type("Log", (self._base,), methods)()

    def errors(self) -> list[str]:
        """Return the messages of severity ERROR and above, in order."""
        worst = int(self._base.Severity.ERROR)
        return [message for severity, message in self._lines if severity <= worst]

    def warnings(self) -> list[str]:
        """Return the first different warnings."""
        warning = int(self._base.Severity.WARNING)
        lines = [message for severity, message in self._lines if severity == warning]
        return list(dict.fromkeys(lines))[:MOST_WARNINGS]
