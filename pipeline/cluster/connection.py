"""Connecting to a Ray cluster, or starting one on this machine that leaves nothing behind."""

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
KNOCK_S = 10.0


def connect(address: str) -> tuple[Any, str | None]:
    """Connects to `ray://HOST:PORT`; or for `ray` to the running cluster ($RAY_ADDRESS, else one of this
    machine), and if there is none to a new one.

    Returns the module `ray`, and the new cluster's folder, for the caller to remove in the end.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    import ray.util.queue

    _knock(os.environ.get("RAY_ADDRESS", "") if address == "ray" else address)
    with _own_signals():
        if address != "ray":
            ray.init(address, **QUIET)
            return ray, None
        _bring_token()
        try:
            ray.init("auto", **QUIET)
        except ConnectionError:
            if os.environ.get("RAY_ADDRESS"):
                raise
            return ray, _start(ray)
    return ray, None


def _knock(address: str) -> None:
    """Raises OSError where nobody listens at HOST:PORT: Ray itself would try for minutes."""
    found = re.fullmatch(r"(?:ray://)?([^/\s]+):(\d+)", address)
    if found:
        socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=KNOCK_S).close()


def _bring_token() -> None:
    """A token for a cluster to start, where there is none: Ray would leave one in the user's home.

    It has to be there before Ray looks for one the first time.
    """
    named = any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if not named and not (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _start(ray: Any) -> str:
    """Starts a cluster with a folder of its own, not in the one that Ray leaves in /tmp."""
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
    """Ray puts a handler of its own on SIGTERM, which would end us with the wrong exit code."""
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
    """Inside Ray's calls whatever SIGTERM's handler raises becomes a plain KeyboardInterrupt; here it comes
    out as what it was, for its exit code is another."""
    before = signal.getsignal(signal.SIGTERM)
    raised: list[BaseException] = []

    def remember(number: int, frame: FrameType | None) -> None:
        try:
            if callable(before):
                before(number, frame)
        except BaseException as error:
            raised.append(error)
            raise

    ours = callable(before) and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGTERM, remember)
    try:
        yield
    except KeyboardInterrupt:
        if raised:
            raise raised[0] from None
        raise
    finally:
        if ours:
            signal.signal(signal.SIGTERM, before)
