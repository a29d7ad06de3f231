"""The checkpoints from which a killed training resumes.

At most one file an epoch, `epoch-NNNNNN-DIGEST.pt`. Its name holds the SHA-256 of its content, one rename
publishes it, and it is read with `weights_only`. A half-written, damaged or foreign file is never used.
"""

from __future__ import annotations

import json
import os
import pickle
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from pipeline.hashing import hash_bytes, hash_file
from pipeline.paths import expand
from pipeline.stage import Progress
from stages.fields import Settings
from stages.models.settings import ModelSettings

EVERY_S = 5.0
"""Shortest time between two checkpoints. A resumed training repeats later epochs, with the same result."""

WRITING_SHARE = 0.05
"""Largest share of the time that is spent on writing checkpoints."""

State = dict[str, Any]
"""What a training continues from; tensors are on the CPU after loading."""


class Checkpoints:
    """The checkpoints of one training in a folder of its own.

    Args:
        folder: The folder; created by the first write.
        identity: Digest of the training's settings (`identity_of`); a checkpoint of another one is not used.
        progress: Where unusable checkpoints are reported.
        every_s: Shortest time between two writes in seconds; 0 writes after every epoch.
    """

    def __init__(
        self, folder: Path, identity: str, progress: Progress, *, every_s: float | None = None
    ) -> None:
        self.folder = folder
        self.identity = identity
        self.progress = progress
        self.every_s = EVERY_S if every_s is None else every_s
        self._written = time.monotonic()
        self._writing_s = 0.0

    def load(self) -> State | None:
        """Return the newest usable state, on the CPU, or None; report and skip unusable ones."""
        for path in sorted(self.folder.glob("epoch-*.pt"), reverse=True):
            state = self._read(path)
            if state is not None:
                return state
        return None

    def due(self) -> bool:
        """Return whether enough time has passed since the last write."""
        wait_s = max(self.every_s, self._writing_s / WRITING_SHARE if self.every_s else 0.0)
        return time.monotonic() - self._written >= wait_s

    def save(self, epoch: int, state: State) -> None:
        """Write the state after `epoch` (from 1), then remove older checkpoints."""
        started = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        half = self.folder / f"half-{os.getpid()}"
        with half.open("wb") as file:
            torch.save({"identity": self.identity, "state": state}, file)
            file.flush()
            os.fsync(file.fileno())
        whole = self.folder / f"epoch-{epoch:06d}-{hash_file(half)}.pt"
        half.replace(whole)
        for path in self.folder.iterdir():
            if path != whole and (path.name.startswith("half-") or path.suffix == ".pt"):
                path.unlink(missing_ok=True)
        self._written = time.monotonic()
        self._writing_s = self._written - started

    def _read(self, path: Path) -> State | None:
        try:
            if hash_file(path) != path.stem.rpartition("-")[2]:
                self.progress.note(f"checkpoint {path.name} is damaged and was not used")
                return None
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            self.progress.note(f"checkpoint {path.name} cannot be read and was not used: {error}")
            return None
        if not isinstance(content, dict) or content.get("identity") != self.identity:
            self.progress.note(f"checkpoint {path.name} belongs to another training and was not used")
            return None
        return dict(content["state"])


def identity_of(settings: SimpleNamespace, **more: str) -> str:
    """Return the SHA-256 of all that makes two trainings the same.

    Args:
        settings: The stage's settings; values that change no result, such as a folder's path, do not count.
        more: Further facts by name, such as digests of weights.
    """
    facts: dict[str, Any] = {name: _keyed(value) for name, value in vars(settings).items()}
    return hash_bytes(json.dumps({**facts, **more}, sort_keys=True, default=str))


def weights_digest(model: ModelSettings) -> str:
    """Return the SHA-256 of the file of weights that a network starts from; empty without a file."""
    return hash_file(expand(model.checkpoint)) if model.checkpoint else ""


def _keyed(value: Any) -> Any:
    """Return a settings object as JSON, without values that change no result (a folder's path)."""
    if not isinstance(value, Settings):
        return value
    unkeyed = {
        name
        for name, field in type(value).model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("keyed") is False
    }
    return value.model_dump(mode="json", exclude=unkeyed, warnings=False)
