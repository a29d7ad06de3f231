"""Weights: reading a file, checking that it fits a network, and loading it."""

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
"""Keys of checkpoints under which training programs store the state dict."""

PREFIXES = ("module.", "_orig_mod.")
"""The prefixes that DataParallel and torch.compile add to every name."""

LISTED_TENSORS = 5
"""At most this many tensors of a kind appear in an error."""


def checkpoint_path(checkpoint: str) -> Path:
    """Expand the path of the key `checkpoint`; see `pipeline.paths.expand`.

    Raises:
        ModelError: A variable of the path is not set.
    """
    try:
        return expand(checkpoint)
    except ValueError as error:
        raise ModelError(
            "the checkpoint is missing",
            where=checkpoint,
            why=str(error),
            hint="correct the key `checkpoint`, or remove it to start from random weights",
        ) from error


def read(file: Path, *, shapes_only: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a weights file.

    It accepts `.safetensors`, and files of `torch.save` that contain only tensors (it reads them with
    `weights_only=True`, so no code of the file runs). The state dict can be under `state_dict`,
    `model_state_dict` or `model`, and its names can begin with `module.` or `_orig_mod.`.

    Args:
        file: The file.
        shapes_only: Put the tensors on the meta device, without their values.

    Returns:
        The tensors by name, on the CPU or the meta device.

    Raises:
        ModelError: The file is missing or damaged, or contains more than tensors.
    """
    if not file.is_file():
        raise ModelError(
            "the checkpoint is missing",
            where=str(file),
            hint="correct the key `checkpoint`, or remove it to start from random weights",
        )
    if file.suffix == ".safetensors":
        return _unprefixed(_read_safetensors(file, shapes_only))
    try:
        content = torch.load(file, map_location="meta" if shapes_only else "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            "the checkpoint contains more than tensors, and reading it would run its code",
            where=str(file),
            why=str(error).splitlines()[0],
            hint="save only the state dict in the training program: torch.save(model.state_dict(), FILE)",
        ) from error
    except Exception as error:
        # For random bytes the unpickler raises nearly any exception.
        raise ModelError(
            "the checkpoint cannot be read: it is damaged, or is not a file of weights",
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
            "the checkpoint cannot be read: it is damaged, or is not a safetensors file",
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
        "the checkpoint contains no state dict",
        where=str(file),
        why=f"it contains {type(content).__name__}; expected tensors by name, "
        f"at the top level or under one of {', '.join(ENVELOPES)}",
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


def check_fit(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Check that the tensors have the model's names and shapes.

    `num_batches_tracked`, which counts training steps and is never read, can be absent. The classifier can
    have another name (`rename_classifier`).

    Args:
        model: The network.
        state: The tensors by name.
        where: The file and the architecture, for the error message.

    Raises:
        ModelError: The tensors do not fit.
    """
    state = rename_classifier(model, state)
    own = model.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    reshaped = [name for name in state if name in own and state[name].shape != own[name].shape]
    if not (missing or unexpected or reshaped):
        return
    if not missing and not unexpected and all(_is_classifier(model, name) for name in reshaped):
        outputs, classes = (tensors[reshaped[0]].shape[0] for tensors in (state, own))
        raise ModelError(
            "the checkpoint was made for another number of classes",
            where=where,
            why=f"its classifier `{reshaped[0]}` has {outputs} outputs, the data set has {classes} classes",
            hint="use a checkpoint trained on this data set, or remove the key `checkpoint`",
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
        hint="set `model`, `options` and `stem` to the values in the checkpoint's training",
    )


def load_into(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Copy the tensors into the model.

    Args:
        model: The network.
        state: The tensors by name.
        where: The file and the architecture, for the error message.

    Raises:
        ModelError: The tensors do not fit (`check_fit`).
    """
    check_fit(model, state, where)
    model.load_state_dict(rename_classifier(model, state), strict=False)


def rename_classifier(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the classifier's tensors to the model's names, if only the classifier's name differs.

    The usual names are `fc`, `linear`, `classifier` and `head.0`. The tensors are renamed only if the
    model's single classifier is all that is missing in the file, and a single layer with tensors of the
    same names is all that the file has in addition. Otherwise the result equals `state`.
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
    """Return whether the tensor belongs to a layer that computes the logits."""
    return name.rpartition(".")[0] in _classifiers(model)


def _classifiers(model: nn.Module) -> set[str]:
    """Return the paths of the layers that compute the logits: the model's list or its last linear layer."""
    heads = getattr(model, "get_classifier", lambda: None)()
    heads = heads if isinstance(heads, tuple | list | nn.ModuleList) else (heads,)
    layers = dict(model.named_modules())
    paths = {path for path, layer in layers.items() if any(layer is head for head in heads)}
    linear = [path for path, layer in layers.items() if isinstance(layer, nn.Linear)]
    return paths or set(linear[-1:])


def _listed(label: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - LISTED_TENSORS} more" if len(names) > LISTED_TENSORS else ""
    return f"{len(names)} {label} ({', '.join(names[:LISTED_TENSORS])}{more})"
