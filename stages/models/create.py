"""Networks by name: timm's architectures, those that kdpipe adds, and torchvision's as `torchvision/NAME`."""

from __future__ import annotations

import contextlib
import difflib
import functools
import warnings
from collections.abc import Iterator

import timm
import torch
import torchvision
from torch import nn

from pipeline.errors import ModelError, first_line
from stages.models import small_mlp as _small_mlp  # noqa: F401 - registers its networks in timm
from stages.models import weights
from stages.models.cifar import registry as _cifar  # noqa: F401 - the same
from stages.models.observer import Observer
from stages.models.settings import ModelSettings
from stages.models.stem import small_stem

TORCHVISION = "torchvision/"
"""The prefix of torchvision's architectures."""

RESERVED = {
    "num_classes": "the data set determines the number of classes",
    "in_chans": "the data set determines the number of channels (data.channels)",
    "pretrained": "use the key `pretrained`",
    "weights": "use the key `pretrained`",
    "checkpoint_path": "use the key `checkpoint`",
    "features_only": "kdpipe needs the whole classifier",
    "device": "use compute.device",
    "dtype": "use compute.precision",
}
"""Constructor arguments that `options` must not contain, and the reason."""


def create(settings: ModelSettings, *, classes: int, channels: int, image_size: int) -> nn.Module:
    """Build the network of `settings` on the CPU, in training mode.

    The library initialises the weights with torch's current generator; then the pretrained weights or the
    checkpoint replace them. An architecture with a fixed image size is built for `image_size`.

    Args:
        settings: The architecture and its starting weights.
        classes: The number of classes.
        channels: Channels of the images.
        image_size: Side of the network's input, pixels.

    Raises:
        ModelError: The name is unknown, the architecture does not accept the options or has no small stem, or
            the weights are not available or do not fit.
    """
    model = _build(settings, classes, channels, image_size, pretrained=settings.pretrained)
    if settings.checkpoint is not None:
        file = weights.checkpoint_path(settings.checkpoint)
        weights.load_into(model, weights.read(file), where=f"{file} into {settings.model}")
    return model


def check(settings: ModelSettings, *, classes: int | None, channels: int | None, image_size: int) -> None:
    """Find the errors that `create` would raise, and an empty final map, without weights.

    This is cheap: the network is built on torch's meta device, and only names and shapes of a checkpoint are
    read.

    Args:
        settings: The architecture and its starting weights.
        classes: The number of classes; None if not known yet: the check assumes 2 and skips the checkpoint.
        channels: Channels of the images; None if not known yet: the check assumes 3 and skips the checkpoint.
        image_size: Side of the network's input, pixels.

    Raises:
        ModelError: `create` would raise it, or the images are too small for the architecture.
    """
    known = classes is not None and channels is not None
    classes, channels = classes or 2, channels or 3
    if settings.pretrained:
        _check_pretrained(settings.model)
    state = None
    if settings.checkpoint is not None:
        state = weights.read(weights.checkpoint_path(settings.checkpoint), shapes_only=True)
    model = _build_without_weights(settings, classes, channels, image_size)
    if state is not None and known:
        weights.check_fit(model, state, where=f"{settings.checkpoint} into {settings.model}")
    _check_image_size(model, settings, classes, channels, image_size)


@functools.cache
def architecture_names() -> tuple[str, ...]:
    """Return the names of all architectures that a profile can use."""
    own = torchvision.models.list_models(module=torchvision.models)
    return (*timm.list_models(), *(TORCHVISION + name for name in own))


def _build(
    settings: ModelSettings, classes: int, channels: int, image_size: int, *, pretrained: bool
) -> nn.Module:
    _check_name(settings.model)
    for option, why in RESERVED.items():
        if option in settings.options:
            raise ModelError(
                f"`{option}` is not an option of a model", where=f"options of {settings.model}", why=why
            )
    build = _build_torchvision if settings.model.startswith(TORCHVISION) else _build_timm
    if pretrained:
        _check_pretrained(settings.model)
        with _download_errors(settings.model):
            model = build(settings, classes, channels, image_size, True)
    else:
        with _option_errors(settings):
            model = build(settings, classes, channels, image_size, False)
    if settings.stem == "small":
        small_stem(model, settings.model, channels)
    return model.train()


def _build_timm(
    settings: ModelSettings, classes: int, channels: int, image_size: int, pretrained: bool
) -> nn.Module:
    options = dict(settings.options)
    facts = timm.get_pretrained_cfg(settings.model)
    if facts is not None and facts.fixed_input_size:
        options.setdefault("img_size", image_size)
    model: nn.Module = timm.create_model(
        settings.model, pretrained=pretrained, in_chans=channels, num_classes=classes, **options
    )
    return model


def _build_torchvision(
    settings: ModelSettings, classes: int, channels: int, image_size: int, pretrained: bool
) -> nn.Module:
    name = settings.model.removeprefix(TORCHVISION)
    options = dict(settings.options)
    if name.startswith("vit_"):
        options.setdefault("image_size", image_size)
    if name.startswith("maxvit_"):
        options.setdefault("input_size", (image_size, image_size))
    if name in ("googlenet", "inception_v3"):
        # Their auxiliary classifiers would make training return more than the logits.
        options.setdefault("aux_logits", False)
        options.setdefault("init_weights", True)
    if pretrained:
        options.pop("init_weights", None)
        model: nn.Module = torchvision.models.get_model(name, weights="DEFAULT", **options)
        _replace_classifier(model, classes)
    else:
        model = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    if channels != 3:
        _replace_input(model, channels, pretrained)
    return model


def _replace_classifier(model: nn.Module, classes: int) -> None:
    kinds = (nn.Linear, nn.Conv2d)
    path, layer = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, kinds)][-1]
    parent, _, child = path.rpartition(".")
    new: nn.Module
    if isinstance(layer, nn.Linear):
        new = nn.Linear(layer.in_features, classes)
    else:
        new = nn.Conv2d(layer.in_channels, classes, kernel_size=1)
    setattr(model.get_submodule(parent), child, new)


def _replace_input(model: nn.Module, channels: int, pretrained: bool) -> None:
    """Change the number of input channels of a torchvision network, which is three.

    Trained weights are summed over the colours (a grey image has three equal colours).
    """
    layer = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    if hasattr(model, "transform_input"):
        model.transform_input = False  # type: ignore[assignment]
    old = layer.weight.detach()
    layer.in_channels = channels
    layer.weight = nn.Parameter(old.new_empty(old.shape[0], channels, *old.shape[2:]))
    if pretrained:
        layer.weight.data.copy_(old.sum(1, keepdim=True).expand_as(layer.weight) / channels)
    else:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def _check_name(name: str) -> None:
    known = architecture_names()
    if name in known or (not name.startswith(TORCHVISION) and ":" not in name and timm.is_model(name)):
        return
    plain = name.removeprefix(TORCHVISION)
    near = difflib.get_close_matches(name, known, 3, 0.6) or [
        other for other in known if plain and plain in other
    ]
    raise ModelError(
        f"there is no architecture named {name}",
        why=f"did you mean {', '.join(near[:3])}?" if near else "neither timm nor torchvision has it",
        hint="list timm's: python -c 'import timm; print(*timm.list_models(), sep=\"\\n\")'",
    )


@contextlib.contextmanager
def _option_errors(settings: ModelSettings) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"{settings.model} cannot be built with these options",
            where="options: " + (", ".join(f"{k}={v!r}" for k, v in settings.options.items()) or "none"),
            why=first_line(error),
            hint="correct or remove the keys under `options`; if the architecture does not accept the image "
            "size, change data.image_size",
        ) from error


def _check_pretrained(name: str) -> None:
    _check_name(name)
    if name.startswith(TORCHVISION) or timm.is_model_pretrained(name):
        return
    raise ModelError(
        f"no pretrained weights are published for {name}",
        hint="set `pretrained: false`, or name a file of weights with the key `checkpoint`",
    )


@contextlib.contextmanager
def _download_errors(name: str) -> Iterator[None]:
    """Convert every failure of a download to a ModelError."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        # Not narrower: the hub's client raises errors of its HTTP library, which do not derive from
        # OSError and differ between versions.
        raise ModelError(
            f"the pretrained weights of {name} could not be downloaded",
            why=f"{type(error).__name__}: {first_line(error)}",
            hint="without network: download them elsewhere and name the file with the key `checkpoint`, "
            "fill the library's cache (HF_HOME, TORCH_HOME), or set `pretrained: false`",
        ) from error


def _build_without_weights(
    settings: ModelSettings, classes: int, channels: int, image_size: int
) -> nn.Module:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                return _build(settings, classes, channels, image_size, pretrained=False)
        except ModelError:
            # A constructor may read values, which the meta device does not have: build it in memory.
            return _build(settings, classes, channels, image_size, pretrained=False)


def _check_image_size(
    model: nn.Module, settings: ModelSettings, classes: int, channels: int, image_size: int
) -> None:
    key = "data.image_size" if settings.image_size is None else "its image_size"
    hint = (
        f"raise {key} (now {image_size})"
        if settings.stem == "small"
        else f"set `stem: small` for {settings.model}, or raise {key} (now {image_size})"
    )
    if settings.options:
        hint += ", or correct `options`"
    device = next(model.parameters()).device
    image = torch.zeros(1, channels, image_size, image_size, device=device)
    try:
        with torch.no_grad():
            features = Observer(model.eval())(image)
    except (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
        raise ModelError(
            f"{settings.model} does not accept images of {image_size} pixels",
            why=first_line(error),
            hint=hint,
        ) from error
    if features.logits.shape != (1, classes):
        raise ModelError(
            f"{settings.model} with these options is not a classifier",
            why=f"its output for an image is {tuple(features.logits.shape)}; expected (1, {classes})",
            hint="remove `global_pool` and similar keys from `options`",
        )
    if features.map.numel() == 0 and features.map.shape[1] > 0:
        raise ModelError(
            f"images of {image_size} pixels are too small for {settings.model}",
            why=f"its final map is {features.map.shape[2]}x{features.map.shape[3]}",
            hint=hint,
        )
