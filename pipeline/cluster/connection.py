"""Connect to a Ray cluster, or start one on this machine that leaves no files behind."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.console.session import Terminated

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
CONNECT_TIMEOUT_S = 10.0


def connect(address: str) -> tuple[Any, str | None]:
    """Connect to a Ray cluster.

    Args:
        address: `ray://HOST:PORT`; or `ray` for the running cluster ($RAY_ADDRESS, else one of this machine),
            and for a new one if none runs.

    Returns:
        The module `ray`, and the folder of a new cluster, which the caller deletes at the end; None if no
        cluster was started.

    Raises:
        OSError: No process listens at the address.
        ConnectionError: The cluster at $RAY_ADDRESS cannot be used.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    import ray.util.queue

    _check_listening(os.environ.get("RAY_ADDRESS", "") if address == "ray" else address)
    with _own_signals():
        if address != "ray":
            ray.init(address, **QUIET)
            return ray, None
        _set_token()
        try:
            ray.init("auto", **QUIET)
        except ConnectionError:
            if os.environ.get("RAY_ADDRESS"):
                raise
            return ray, _start(ray)
    return ray, None


def _check_listening(address: str) -> None:
    """Raise OSError if no process listens at HOST:PORT: Ray itself would try for minutes."""
    match = re.fullmatch(r"(?:ray://)?([^/\s]+):(\d+)", address)
    if match:
        socket.create_connection((match[1].strip("[]"), int(match[2])), timeout=CONNECT_TIMEOUT_S).close()


def _set_token() -> None:
    """Set a token for a new cluster if there is none: Ray would write one into the user's home.

    It must be set before Ray looks for one the first time.
    """
    is_configured = any(
        name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    )
    if not is_configured and not (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _start(ray: Any) -> str:
    """Start a cluster with its own folder: Ray would leave one in /tmp."""
    ray.shutdown()
    folder = tempfile.mkdtemp(prefix="kdpipe-ray-")
    try:
        ray.init("local", include_dashboard=False, _temp_dir=folder, **QUIET)
    except BaseException:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Restore SIGTERM's handler after the block: Ray's would end this process with the wrong exit code."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        raise Terminated from None
    finally:
        with contextlib.suppress(ValueError, TypeError):  # not the main thread; not set by Python
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def exact_interrupts() -> Iterator[None]:
    """Raise the exception of SIGTERM's handler itself, which has an exit code of its own.

    Inside Ray's calls it becomes a plain KeyboardInterrupt.
    """
    before = signal.getsignal(signal.SIGTERM)
    raised: list[BaseException] = []

    def record(number: int, frame: FrameType | None) -> None:
        try:
            if callable(before):
                before(number, frame)
        except BaseException as error:
            raised.append(error)
            raise

    is_replaced = callable(before) and threading.current_thread() is threading.main_thread()
    if is_replaced:
        signal.signal(signal.SIGTERM, record)
    try:
        yield
    except KeyboardInterrupt:
        if raised:
            raise raised[0] from None
        raise
    finally:
        if is_replaced:
            signal.signal(signal.SIGTERM, before)
