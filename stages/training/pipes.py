"""Pipes on which the processes of a training report progress and errors to their parent.

Every process has its own pipe. A process that is killed in the middle of a message therefore holds no lock
that another process waits for, and the pipe of a dead process ends by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from pipeline.errors import KdpipeError
from pipeline.stage import Progress

TIMEOUT_S = 10.0
"""How long to wait for a process to end after SIGTERM, and for a receiver to take the last messages."""


class Sender:
    """A process's end: a progress reporter that sends its calls.

    Raises:
        BrokenPipeError: On every call after the receiver has stopped.
    """

    def __init__(self, writer: Connection) -> None:
        self._writer = writer
        self._lock = threading.Lock()

    def update(self, done: float, total: float, unit: str = "", **figures: float | str) -> None:
        """Send an update (`Progress.update`)."""
        self._send("update", (done, total, unit), figures)

    def note(self, text: str) -> None:
        """Send a note (`Progress.note`)."""
        self._send("note", (text,), {})

    def failed(self, error: KdpipeError) -> None:
        """Send the error that ends this process."""
        self._send("failed", (error,), {})

    def _send(self, name: str, arguments: tuple[Any, ...], figures: dict[str, float | str]) -> None:
        with self._lock:
            self._writer.send((name, arguments, figures))


class Receiver:
    """The parent's end: passes progress on from its own thread, and stores the errors.

    Args:
        count: Number of processes.
        progress: Where progress is reported.

    Attributes:
        writers: Each process's end, by rank; `close` closes this process's copies of them.
        errors: The error that ended a process, by rank.
        refusal: What the progress reporter raised. The receiver stops then, so that the processes end too.
    """

    def __init__(self, count: int, progress: Progress) -> None:
        pipes = [get_context("spawn").Pipe(duplex=False) for _ in range(count)]
        self.writers: Sequence[Connection] = [writer for _, writer in pipes]
        self.errors: dict[int, KdpipeError] = {}
        self.refusal: BaseException | None = None
        self._ranks = {reader: rank for rank, (reader, _) in enumerate(pipes)}
        self._progress = progress
        self._thread = threading.Thread(target=self._receive, name="kdpipe-progress", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Receive the last messages; call it when the processes have ended."""
        for writer in self.writers:
            writer.close()
        self._thread.join(TIMEOUT_S)

    def _receive(self) -> None:
        try:
            while self._ranks:
                for reader in connection.wait(list(self._ranks)):
                    assert isinstance(reader, Connection)
                    self._receive_message(reader)
        except BaseException as error:
            self.refusal = error
        finally:
            for reader in self._ranks:
                reader.close()

    def _receive_message(self, reader: Connection) -> None:
        try:
            name, arguments, figures = reader.recv()
        except (EOFError, OSError):
            del self._ranks[reader]
            reader.close()
            return
        if name == "failed":
            self.errors[self._ranks[reader]] = arguments[0]
        else:
            report: Callable[..., None] = getattr(self._progress, name)
            report(*arguments, **figures)


def end_processes(processes: Sequence[BaseProcess]) -> None:
    """End processes that still run: SIGTERM, then SIGKILL after TIMEOUT_S seconds."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()
