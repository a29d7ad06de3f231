"""What the processes of a training report to their parent: progress, and the error that ended one.

Every process has a pipe of its own. A process that is killed in the middle of a message therefore
holds no lock that another one waits for, and the pipe of a dead process ends by itself.
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

PATIENCE_S = 10.0
"""How long to wait for a process to end after SIGTERM, and for a receiver to take the last messages."""


class Sender:
    """A process's end: a progress reporter that sends what it is given.

    Raises BrokenPipeError once the receiver has stopped.
    """

    def __init__(self, writer: Connection) -> None:
        self._writer = writer
        self._one_at_a_time = threading.Lock()

    def update(self, done: float, total: float, unit: str = "", **figures: float | str) -> None:
        self._send("update", (done, total, unit), figures)

    def note(self, text: str) -> None:
        self._send("note", (text,), {})

    def failed(self, error: KdpipeError) -> None:
        """The error that ends this process."""
        self._send("failed", (error,), {})

    def _send(self, name: str, arguments: tuple[Any, ...], figures: dict[str, float | str]) -> None:
        with self._one_at_a_time:
            self._writer.send((name, arguments, figures))


class Receiver:
    """The other end: passes progress on from a thread of its own, and keeps the errors.

    writers: by rank, for the processes; `close` closes this process's copies of them.
    errors: by rank, what ended the process. refusal: what the progress reporter raised; nothing is
    received any more then, so that the processes end as well.
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
        """Takes the last messages; call it when the processes have ended."""
        for writer in self.writers:
            writer.close()
        self._thread.join(PATIENCE_S)

    def _receive(self) -> None:
        try:
            while self._ranks:
                for reader in connection.wait(list(self._ranks)):
                    assert isinstance(reader, Connection)
                    self._take(reader)
        except BaseException as error:
            self.refusal = error
        finally:
            for reader in self._ranks:
                reader.close()

    def _take(self, reader: Connection) -> None:
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


def end(processes: Sequence[BaseProcess]) -> None:
    """Ends processes that still run: SIGTERM, then SIGKILL for one that does not end in PATIENCE_S."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(PATIENCE_S)
        if process.is_alive():
            process.kill()
            process.join()
