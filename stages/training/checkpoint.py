"""What a killed training goes on from.

One file an epoch at most, `epoch-NNNN-DIGEST.pt`: its name holds the SHA-256 of its content, it
comes to be by one rename, and it is read with `weights_only`, so that a half-written, damaged or
foreign file is never trained on.
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
"""Shortest time between two checkpoints. Epochs in between are trained again, to the same end."""

SHARE = 0.05
"""Largest share of the time spent on writing them."""

State = dict[str, Any]


class Checkpoints:
    """The checkpoints of one training in a folder of its own.

    identity: what the training is (see `identity_of`); a checkpoint of another is not used.
    every_s: shortest time between two writes; 0 writes after every epoch.
    """

    def __init__(
        self, folder: Path, identity: str, progress: Progress, *, every_s: float | None = None
    ) -> None:
        self.folder = folder
        self.identity = identity
        self.progress = progress
        self.every_s = EVERY_S if every_s is None else every_s
        self._written = time.monotonic()
        self._cost_s = 0.0

    def load(self) -> State | None:
        """The newest usable state, on the CPU, or None. Unusable ones are noted and passed over."""
        for path in sorted(self.folder.glob("epoch-*.pt"), reverse=True):
            state = self._read(path)
            if state is not None:
                return state
        return None

    def due(self) -> bool:
        """Whether enough time has gone by since the last write."""
        wait_s = max(self.every_s, self._cost_s / SHARE if self.every_s else 0.0)
        return time.monotonic() - self._written >= wait_s

    def save(self, epoch: int, state: State) -> None:
        """Writes the state after `epoch` (from 1), then removes older ones."""
        begun = time.monotonic()
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
        self._cost_s = self._written - begun

    def _read(self, path: Path) -> State | None:
        try:
            if hash_file(path) != path.stem.rpartition("-")[2]:
                self.progress.note(f"checkpoint {path.name} is damaged and was not used")
                return None
            found = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            self.progress.note(f"checkpoint {path.name} cannot be read and was not used: {error}")
            return None
        if not isinstance(found, dict) or found.get("identity") != self.identity:
            self.progress.note(f"checkpoint {path.name} is of another training and was not used")
            return None
        return dict(found["state"])


def identity_of(settings: SimpleNamespace, **more: str) -> str:
    """SHA-256 of all that makes two trainings the same: the settings that count, and `more`."""
    facts: dict[str, Any] = {name: _keyed(value) for name, value in vars(settings).items()}
    return hash_bytes(json.dumps({**facts, **more}, sort_keys=True, default=str))


def weights_digest(model: ModelSettings) -> str:
    """SHA-256 of the file of weights a network starts from; empty without one."""
    return hash_file(expand(model.checkpoint)) if model.checkpoint else ""


def _keyed(value: Any) -> Any:
    """A settings object as JSON, less what does not change a result (a folder's place)."""
    if not isinstance(value, Settings):
        return value
    unkeyed = {
        name
        for name, field in type(value).model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("keyed") is False
    }
    return value.model_dump(mode="json", exclude=unkeyed, warnings=False)
