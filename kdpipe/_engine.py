"""Call the engine. No other module of this package starts runs.

The command line calls the same functions. A library differs in three ways: it sets no signal handler, prints
nothing on standard output, and has one run at a time in a process, because stages set torch's global state.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import KdpipeError, UsageError

if TYPE_CHECKING:
    from pipeline.comparing.method_specs import MethodSpec
    from pipeline.console.progress import ConsoleListener
    from pipeline.profile.loading import LoadedProfile
    from pipeline.store.store import Store

_RUN_LOCK = threading.RLock()


@dataclass(frozen=True)
class Outcome:
    """The stages of a run as entries of the JSON document, and the error that ended it.

    Attributes:
        entries: One for each stage, in order; empty if the run ended before the first one.
        error: None if the run succeeded.
    """

    entries: list[dict[str, Any]]
    error: KdpipeError | None = None


def open_profile(
    profile: str | os.PathLike[str], values: Mapping[str, Any] | None, store: str | os.PathLike[str] | None
) -> tuple[LoadedProfile, Store]:
    """Load and check a profile, and open its store.

    Args:
        profile: The file, or the name of a profile that comes with kdpipe.
        values: Values that replace those of the profile, by dotted key.
        store: The store's folder; None for the default.

    Raises:
        UsageError: The profile or a value is invalid, or the store cannot be used.
    """
    from pipeline.commands.profiles import memo_folder
    from pipeline.console.session import store_folder
    from pipeline.profile.loading import load
    from pipeline.store.store import Store

    opened = Store(store_folder(None if store is None else os.fspath(store)))
    opened.check()
    loaded = load(os.fspath(profile), overrides(values or {}), memo_folder(opened.root), remember=False)
    return loaded, opened


def overrides(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return `KEY=VALUE` for each value, as after `--set`; JSON is YAML.

    Raises:
        UsageError: A value is not made of numbers, strings, lists, mappings, paths, booleans and None.
    """
    if not isinstance(values, Mapping):
        raise UsageError(
            "set is not a mapping",
            where="argument set",
            why=f"found {type(values).__name__}",
            hint='write set={"distill.epochs": 5}',
        )
    return tuple(f"{key}={_as_yaml(key, value)}" for key, value in values.items())


def _as_yaml(key: str, value: Any) -> str:
    def plain(other: Any) -> Any:
        if isinstance(other, os.PathLike):
            return os.fspath(other)
        if hasattr(other, "item") and getattr(other, "ndim", None) == 0:  # a scalar of numpy or torch
            return other.item()
        raise TypeError(f"{type(other).__name__} is not a valid value for a profile")

    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=plain)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"The value of {key} cannot be written into a profile",
            where=f"argument set, key {key!r}",
            why=str(error),
            hint="give a number, a string, a boolean, None, a path, or a list or mapping of these",
        ) from None


def bring_up_to_date(
    loaded: LoadedProfile,
    store: Store,
    *,
    until: str | None,
    force: Sequence[str],
    remote: str | None,
    strict: bool,
    progress: bool,
) -> Outcome:
    """Bring the stages of a profile up to date.

    Args:
        loaded: The profile.
        store: Its store.
        until: The last stage; None for all.
        force: Stages that run even if they are cached.
        remote: URL of a store to pull from and to push to.
        strict: Count an undecided gate as missed.
        progress: Whether to print on standard error.

    Returns:
        The stages, and the error that ended the run.

    Raises:
        UsageError: A stage's name or the remote cannot be used.
    """
    from pipeline.commands.profiles import remember_profile
    from pipeline.console.json_documents import result_entry
    from pipeline.running.runner import prepare_run, run_stages
    from stages import STAGES

    with _quiet_output(), _listener([stage.name for stage in STAGES], progress) as listener:
        state = prepare_run(loaded, store, listener, until=until, force=force, remote=_remote(remote))
        outcome = run_stages(state, strict=strict)
    if outcome.is_complete:
        remember_profile(loaded, store)
    return Outcome([result_entry(result) for result in outcome.results], outcome.error)


def planned(
    loaded: LoadedProfile, store: Store, *, until: str | None, force: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the plan's entries of the JSON document."""
    from pipeline.console.json_documents import planned_entry
    from pipeline.running.plan import make_plan

    return [planned_entry(decision) for decision in make_plan(loaded, store, until=until, force=force)]


def compared(
    loaded: LoadedProfile,
    store: Store,
    *,
    methods: Sequence[str] | Mapping[str, Sequence[str | Mapping[str, Any]]] | None,
    seeds: int | Sequence[int],
    split: str,
    baseline: bool,
    jobs: int,
    progress: bool,
) -> tuple[dict[str, Any], KdpipeError | None]:
    """Run a comparison of methods.

    Args:
        loaded: The profile.
        store: Its store.
        methods: The methods: names or terms like `kd+rkd`, or lists of method settings by label.
        seeds: How many seeds, or the seeds themselves.
        split: The split that is compared: `test` or `validation`.
        baseline: Whether to compare with the student trained without a teacher.
        jobs: How many runs at once.
        progress: Whether to print on standard error.

    Returns:
        The fields of the JSON document, and an error if a run failed.

    Raises:
        UsageError: The split, the seeds or the methods are invalid.
    """
    from pipeline.commands.profiles import memo_folder, remember_profile
    from pipeline.comparing.comparison import plan_runs
    from pipeline.comparing.execution import error_for_failed_runs, execute_comparison, seeds_of_count
    from pipeline.running.runner import prepare_run, run_stages

    if split not in ("test", "validation"):
        raise UsageError(f"There is no split {split!r}", where="argument split", hint="test or validation")
    chosen = seeds_of_count(loaded, seeds) if isinstance(seeds, int) else list(dict.fromkeys(map(int, seeds)))
    if not chosen or min(chosen) < 0:
        raise UsageError(
            "There is no seed to train from",
            where="argument seeds",
            why=f"found {seeds!r}",
            hint="give a number of at least 1, or a list of whole numbers from 0 on",
        )
    with _quiet_output():
        runs, unfit = plan_runs(
            loaded,
            _entries(methods, baseline),
            chosen,
            store,
            baseline=baseline,
            memo=memo_folder(store.root),
        )
        with _listener(["train", "compare", *(each.title for each in runs)], progress) as listener:
            done, document = execute_comparison(
                loaded,
                store,
                runs,
                unfit,
                split=split,
                jobs=jobs,
                listener=listener,
                console=listener.console,
                train_teacher=lambda: run_stages(prepare_run(loaded, store, listener, only="train")),
            )
    remember_profile(loaded, store)
    about = {"profile": str(loaded.path), "store": str(store.root), "split": split}
    return {**about, **document}, error_for_failed_runs(done)


def _entries(
    methods: Sequence[str] | Mapping[str, Sequence[str | Mapping[str, Any]]] | None, baseline: bool
) -> list[MethodSpec]:
    from pipeline.comparing.method_specs import DEFAULT, MethodSpec, read_specs

    if isinstance(methods, Mapping):
        entries = [
            MethodSpec(
                label, tuple({"name": term} if isinstance(term, str) else dict(term) for term in terms)
            )
            for label, terms in methods.items()
        ]
    else:
        entries = read_specs(methods or DEFAULT)
    if not baseline and len(entries) < 2:
        raise UsageError(
            "There is nothing to compare",
            where="arguments methods and baseline",
            why="without the baseline the first method is the reference, and there is no other method",
            hint="leave out baseline=False, or give two methods",
        )
    return entries


def _remote(url: str | None) -> Any:
    if url is None:
        return None
    from pipeline.store.remote import Remote

    return Remote(url)


@contextmanager
def _quiet_output() -> Iterator[None]:
    """Send to standard error what libraries print on standard output; allow one run at a time."""
    from pipeline.console.console import guarded_output

    with _RUN_LOCK, guarded_output(), contextlib.redirect_stdout(sys.stderr):
        yield


@contextmanager
def _listener(names: Sequence[str], progress: bool) -> Iterator[ConsoleListener]:
    from pipeline.console.console import Console
    from pipeline.console.progress import ConsoleListener

    console = Console(out=io.StringIO(), err=None if progress else io.StringIO())
    if not progress:
        console.progress = False
    with ConsoleListener(console, tuple(names)) as listener:
        yield listener
