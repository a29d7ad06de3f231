"""Artefacts put into a store for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.store.manifest import Manifest
from pipeline.store.store import Store

PROFILE = {"path": "/profiles/a.yaml", "name": "a"}


def put(store: Store, stage: str = "train", tag: Any = 1, text: str = "weights", **more: Any) -> Manifest:
    """Publishes an artefact of two files."""
    with store.scratch() as folder:
        (folder / "model.bin").write_text(text)
        (folder / "deep").mkdir()
        (folder / "deep" / "card.json").write_text("{}")
        return store.publish(
            folder,
            **{
                "stage": stage,
                "version": 1,
                "key_parts": {"stage": stage, "tag": tag},
                "inputs": {},
                "metrics": {"top1": 97.5},
                "seconds": 1.5,
                "profile": PROFILE,
                **more,
            },
        )


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
