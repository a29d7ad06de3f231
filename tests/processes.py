"""The marker `process`: which tests start other processes, and a guard that keeps the marker true.

The marker is set at collection. The code of the test and of its fixtures is searched, and the functions of
this project that they call, for a use of `subprocess` or `multiprocessing`. The search does not see calls
through a registry, an object or a late import (a stage that measures, a runtime's trial): mark such a test
with `pytest.mark.process`, or such a helper or fixture with `starts_processes`.

`pytest --no-processes` fails every test that starts a process. `make test-fast` runs the tests without the
marker that way, so a test that lacks the marker fails there.
"""

from __future__ import annotations

import inspect
import multiprocessing
import multiprocessing.util
import subprocess
import sys
from collections.abc import Generator, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeVar

import pytest

Callable = TypeVar("Callable")

STARTING = frozenset(
    {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.system", "os.exec", "os.spawn"}
)
"""The audit events of a process that is started."""

OURS = frozenset({"tests", "pipeline", "stages", "kdpipe", "benchmarks"})
"""The packages whose code is searched."""


def starts_processes(function: Callable) -> Callable:
    """Mark a helper or a fixture: every test that reaches it starts processes. Goes below `@fixture`."""
    function.starts_processes = True  # type: ignore[attr-defined]
    return function


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-processes", action="store_true", help="fail every test that starts another process"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set the marker before `-m` selects by it."""
    reached = _Reached()
    for item in items:
        if isinstance(item, pytest.Function):
            fixtures = item._fixtureinfo.name2fixturedefs.values()
            functions = [item.function, *(one.func for definitions in fixtures for one in definitions)]
            used = set(_names(inspect.unwrap(item.function).__code__))
            functions += [member for name, member in vars(item.cls or object).items() if name in used]
            if any(reached.starts(function) for function in functions):
                item.add_marker(pytest.mark.process)


class _Reached:
    """Whether a function of the tests, or one that it reaches, starts processes. Remembers its answers."""

    def __init__(self) -> None:
        self._known: dict[int, bool] = {}

    def starts(self, thing: object) -> bool:
        thing = inspect.unwrap(thing) if callable(thing) else thing
        if getattr(thing, "starts_processes", False):
            return True
        if isinstance(thing, type):
            return _ours(thing) and any(self.starts(part) for part in vars(thing).values())
        if isinstance(thing, property | staticmethod | classmethod):
            return self.starts(thing.fget if isinstance(thing, property) else thing.__func__)
        # Hypothesis keeps the test that it wraps here.
        inner = getattr(getattr(thing, "hypothesis", None), "inner_test", None)
        if inner is not None:
            return self.starts(inner)
        if not isinstance(thing, FunctionType) or not _ours(thing):
            return False
        if id(thing) not in self._known:
            self._known[id(thing)] = False  # ends the search in a circle
            self._known[id(thing)] = self._uses(thing)
        return self._known[id(thing)]

    def _uses(self, function: FunctionType) -> bool:
        names = set(_names(function.__code__))
        for name in names & function.__globals__.keys():
            value = function.__globals__[name]
            # The product's training uses `multiprocessing`, but only where several devices are asked for.
            if value is subprocess or (value is multiprocessing and _of_the_tests(function)):
                return True
            if isinstance(value, ModuleType):
                members = vars(value) if _ours(value) else {}
                if any(self.starts(members[one]) for one in names & members.keys()):
                    return True
            elif self.starts(value):
                return True
        return False


def _names(code: CodeType) -> Iterator[str]:
    """The global names and the attributes that a function uses, with those of the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _of_the_tests(function: FunctionType) -> bool:
    return function.__module__.partition(".")[0] == "tests"


def _ours(thing: Any) -> bool:
    name = thing.__name__ if isinstance(thing, ModuleType) else thing.__module__
    return str(name).partition(".")[0] in OURS


class _Guard:
    """Fails the test that is running when it starts a process."""

    def __init__(self) -> None:
        self._running = ""
        self._started: list[str] = []

    def refuse(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._running and event in STARTING:
            self._started.append(f"{event} {arguments[:2]}")
            pytest.fail(self._message())

    def _message(self) -> str:
        return (
            f"{self._running} starts a process ({'; '.join(self._started)[:300]}) and lacks the marker "
            "`process`: mark it with pytest.mark.process, or its helper with tests.processes.starts_processes"
        )

    def _watch(self, item: pytest.Item) -> Generator[None, object, object]:
        self._running, self._started = item.nodeid, []
        try:
            result = yield
            # A start in another thread, or one whose failure was swallowed.
            if self._started:
                pytest.fail(self._message())
            return result
        finally:
            self._running = ""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._watch(item))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._watch(item))


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--no-processes"):
        guard = _Guard()
        config.pluginmanager.register(guard)
        sys.addaudithook(guard.refuse)
        # The one way to start a process that has no audit event.
        start = multiprocessing.util.spawnv_passfds

        def spawn(path: Any, arguments: Any, descriptors: Any) -> int:
            guard.refuse("os.spawn", (path, arguments))
            return int(start(path, arguments, descriptors))

        multiprocessing.util.spawnv_passfds = spawn  # type: ignore[assignment]
