"""What the commands about a profile share: loading it, and opening the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.console.session import Session, store_folder

if TYPE_CHECKING:
    from pipeline.profile.loading import LoadedProfile
    from pipeline.store.store import Store


def open_profile(
    session: Session, path: str, overrides: Sequence[str], store_option: str | None
) -> tuple[LoadedProfile, Store]:
    """The profile and the store of this call; the session's document names both from now on."""
    from pipeline.profile.loading import load
    from pipeline.store.store import Store

    session.store = store_folder(store_option)
    about = {"profile": path, "overrides": list(overrides), "store": str(session.store), "stages": []}
    session.so_far = lambda: dict(about)
    store = Store(session.store)
    store.check()
    # Only looked up here: a profile that turns out to be at fault must leave no trace.
    profile = load(path, overrides, memo_folder(store.root), remember=False)
    about["profile"] = str(profile.path)
    return profile, store


def remember_profile(path: str, overrides: Sequence[str], store: Store) -> None:
    """Spares the next call the validation. For after the work: the store is there, the profile was good."""
    from pipeline.profile.loading import load

    if (store.root / "store.json").exists():
        load(path, overrides, memo_folder(store.root))


def memo_folder(store: Path) -> Path:
    """Where checked profiles are remembered."""
    return store / "cache" / "profiles"
