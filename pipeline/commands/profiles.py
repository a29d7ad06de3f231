"""Load a profile, open the store, and cache the validated profile, for every command with a profile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.console.session import Session, store_folder

if TYPE_CHECKING:
    from pipeline.profile.loading import LoadedProfile
    from pipeline.store.store import Store


def open_profile(
    session: Session, path: str, overrides: Sequence[str], store_option: str | None
) -> tuple[LoadedProfile, Store]:
    """Load the profile and open the store; the session's JSON document contains both from now on.

    A profile that the session has loaded already is not read again. Nothing is written, because an invalid
    profile must leave no trace.

    Args:
        session: The call of the command line.
        path: The profile's path or name.
        overrides: The `KEY=VALUE` of `--set`.
        store_option: The value of `--store`.

    Returns:
        The valid profile, and its store.

    Raises:
        UsageError: The store cannot be used, or there is no such profile.
        ProfileError: The profile is invalid.
    """
    from pipeline.profile.loading import load
    from pipeline.store.store import Store

    session.store = store_folder(store_option)
    call_fields = {"profile": path, "overrides": list(overrides), "store": str(session.store)}
    session.so_far = lambda: {**call_fields, "stages": _entries(session)}
    store = Store(session.store)
    store.check()
    profile = session.loaded or load(path, overrides, memo_folder(store.root), remember=False)
    call_fields["profile"] = str(profile.path)
    return profile, store


def remember_profile(profile: LoadedProfile, store: Store) -> None:
    """Cache the profile as it was read. Call after a successful run; without a store nothing is written."""
    if (store.root / "store.json").exists():
        profile.remember(memo_folder(store.root))


def memo_folder(store: Path) -> Path:
    """Return the folder of the store with the validated profiles."""
    return store / "cache" / "profiles"


def _entries(session: Session) -> list[dict[str, Any]]:
    from pipeline.console.json_documents import result_entry

    return [result_entry(result) for result in session.results()]
