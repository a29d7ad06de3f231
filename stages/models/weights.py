"""Weights read from a file and put into a network, with a plain word where the two do not fit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pipeline.errors import ModelError, first_line
from pipeline.paths import expand

ENVELOPES = ("state_dict", "model_state_dict", "model")
"""Keys under which training programs put the state dict inside their checkpoint."""

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""

SHOWN = 5


def file_of(checkpoint: str) -> Path:
    """Expand the path that the key `checkpoint` has; see `pipeline.paths.expand`. Raises ModelError."""
    try:
        return expand(checkpoint)
    except ValueError as error:
        raise ModelError(
            "the checkpoint is not there",
            where=checkpoint,
            why=str(error),
            hint="correct the key `checkpoint`, or remove it to start from random weights",
        ) from error


def read(file: Path, *, shapes_only: bool = False) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU (`shapes_only`: on the meta device).

    Takes `.safetensors`, and files of `torch.save` that hold nothing but tensors (they are read with
    `weights_only=True`: no code of the file runs). A state dict may lie under `state_dict`,
    `model_state_dict` or `model`, its names may begin with `module.`.

    Raises ModelError if the file is missing, damaged, or holds more than tensors.
    """
    if not file.is_file():
        raise ModelError(
            "the checkpoint is not there",
            where=str(file),
            hint="correct the key `checkpoint`, or remove it to start from random weights",
        )
    if file.suffix == ".safetensors":
        return _unprefixed(_read_safetensors(file, shapes_only))
    try:
        content = torch.load(file, map_location="meta" if shapes_only else "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            "the checkpoint holds more than tensors, and reading it would run its code",
            where=str(file),
            why=str(error).splitlines()[0],
            hint="where it was made, save the state dict alone: torch.save(model.state_dict(), FILE)",
        ) from error
    except Exception as error:
        # A file of noise makes the unpickler stumble in any way.
        raise ModelError(
            "the checkpoint cannot be read: it is damaged, or no file of weights",
            where=str(file),
            why=first_line(error),
            hint="copy the file again",
        ) from error
    return _unprefixed(_state_dict(content, file))


def _read_safetensors(file: Path, shapes_only: bool) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            if shapes_only:
                return {
                    name: torch.empty(opened.get_slice(name).get_shape(), device="meta")
                    for name in opened.keys()  # noqa: SIM118 - not a mapping
                }
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(
            "the checkpoint cannot be read: it is damaged, or no safetensors file",
            where=str(file),
            why=first_line(error),
            hint="copy the file again",
        ) from error


def _state_dict(content: Any, file: Path) -> dict[str, Tensor]:
    for envelope in ENVELOPES:
        if isinstance(content, Mapping) and isinstance(content.get(envelope), Mapping):
            content = content[envelope]
            break
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise ModelError(
        "the checkpoint holds no state dict",
        where=str(file),
        why=f"found {type(content).__name__}; expected tensors by name, "
        f"as they are or under one of {', '.join(ENVELOPES)}",
        hint="save it with torch.save(model.state_dict(), FILE)",
    )


def _unprefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            if state and all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
                stripped = True
    return state


def fit(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Raises ModelError unless the tensors are the model's own: the same names and shapes.

    `num_batches_tracked`, which counts training steps and nothing reads, may be absent, and the
    classifier may be called otherwise (`as_named`).
    """
    state = as_named(model, state)
    own = model.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    reshaped = [name for name in state if name in own and state[name].shape != own[name].shape]
    if not (missing or unexpected or reshaped):
        return
    if not missing and not unexpected and all(_is_classifier(model, name) for name in reshaped):
        found, expected = (
            next(iter(tensors[name].shape[0] for name in reshaped)) for tensors in (state, own)
        )
        raise ModelError(
            "the checkpoint was made for another number of classes",
            where=where,
            why=f"its classifier `{reshaped[0]}` has {found} outputs, the data set has {expected} classes",
            hint="take a checkpoint trained on this data set, or remove the key `checkpoint`",
        )
    why = [
        _listed("missing", missing),
        _listed("unexpected", unexpected),
        _listed(
            "of another shape",
            [f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}" for name in reshaped],
        ),
    ]
    raise ModelError(
        "the checkpoint does not fit the architecture",
        where=where,
        why="; ".join(part for part in why if part),
        hint="set `model`, `options` and `stem` to what the checkpoint was trained with",
    )


def put(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Copies the tensors into the model, or raises ModelError as `fit` does."""
    fit(model, state, where)
    model.load_state_dict(as_named(model, state), strict=False)


def as_named(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the model's names, where only the classifier's name differs.

    One code calls it `fc`, another `linear`, `classifier` or `head.0`. It is told by what is left over:
    the model lacks nothing but its one classifier, and the file has nothing more than one layer with
    tensors of the same names. Anything else stays as it is.
    """
    own = model.state_dict()
    missing = {name for name in own if name not in state and not name.endswith("num_batches_tracked")}
    unexpected = [name for name in state if name not in own]
    owners = {name.rpartition(".")[0] for name in unexpected}
    heads = _classifiers(model)
    if len(heads) != 1 or len(owners) != 1:
        return dict(state)
    (head,) = heads
    names = {name: f"{head}.{name.rpartition('.')[2]}" for name in unexpected}
    if set(names.values()) != missing:
        return dict(state)
    return {names.get(name, name): tensor for name, tensor in state.items()}


def _is_classifier(model: nn.Module, name: str) -> bool:
    """Whether the tensor belongs to a layer that gives the classes' scores."""
    return name.rpartition(".")[0] in _classifiers(model)


def _classifiers(model: nn.Module) -> set[str]:
    """The paths of the layers that give the classes' scores: as the model says, else its last linear one."""
    heads = getattr(model, "get_classifier", lambda: None)()
    heads = heads if isinstance(heads, tuple | list | nn.ModuleList) else (heads,)
    layers = dict(model.named_modules())
    told = {path for path, layer in layers.items() if any(layer is head for head in heads)}
    linear = [path for path, layer in layers.items() if isinstance(layer, nn.Linear)]
    return told or set(linear[-1:])


def _listed(label: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} {label} ({', '.join(names[:SHOWN])}{more})"
