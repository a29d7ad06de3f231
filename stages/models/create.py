"""Networks by name: timm's architectures, ours among them, and torchvision's under `torchvision/NAME`."""

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
from stages.models import small_mlp as _small_mlp  # noqa: F401 - puts its networks into timm's registry
from stages.models import weights
from stages.models.cifar import registry as _cifar  # noqa: F401 - the same
from stages.models.observer import Observer
from stages.models.settings import ModelSettings
from stages.models.stem import small_stem

TORCHVISION = "torchvision/"

RESERVED = {
    "num_classes": "the data set tells the number of classes",
    "in_chans": "the data set tells the number of channels (data.channels)",
    "pretrained": "use the key `pretrained`",
    "weights": "use the key `pretrained`",
    "checkpoint_path": "use the key `checkpoint`",
    "features_only": "kdpipe needs the whole classifier",
    "device": "use compute.device",
    "dtype": "use compute.precision",
}
"""Constructor arguments that are not for `options`, and why."""


def create(settings: ModelSettings, *, classes: int, channels: int, image_size: int) -> nn.Module:
    """The network of `settings` on the CPU, in training mode.

    Random weights are drawn from torch's current generator, as the library initialises them; then
    come the pretrained weights or the checkpoint. An architecture built for one image size is built
    for `image_size`.

    Raises ModelError: unknown name, options the architecture does not take, no small stem, weights
    that cannot be had or do not fit.
    """
    model = _architecture(settings, classes, channels, image_size, pretrained=settings.pretrained)
    if settings.checkpoint is not None:
        file = weights.file_of(settings.checkpoint)
        weights.put(model, weights.read(file), where=f"{file} into {settings.model}")
    return model


def check(settings: ModelSettings, *, classes: int | None, channels: int | None, image_size: int) -> None:
    """Finds what `create` would raise, and a map that comes out empty, without any weights.

    Cheap: the network is laid out on torch's meta device, and of a checkpoint only names and shapes
    are read. `classes` or `channels` None: not yet known; 2 and 3 stand for them, and the fit of a
    checkpoint is not looked at.

    Raises ModelError.
    """
    known = classes is not None and channels is not None
    classes, channels = classes or 2, channels or 3
    if settings.pretrained:
        _pretrained_is_published(settings.model)
    state = None
    if settings.checkpoint is not None:
        state = weights.read(weights.file_of(settings.checkpoint), shapes_only=True)
    model = _laid_out(settings, classes, channels, image_size)
    if state is not None and known:
        weights.fit(model, state, where=f"{settings.checkpoint} into {settings.model}")
    _takes_images(model, settings, classes, channels, image_size)


@functools.cache
def names() -> tuple[str, ...]:
    """Every architecture a profile can name."""
    own = torchvision.models.list_models(module=torchvision.models)
    return (*timm.list_models(), *(TORCHVISION + name for name in own))


def _architecture(
    settings: ModelSettings, classes: int, channels: int, image_size: int, *, pretrained: bool
) -> nn.Module:
    _name_is_known(settings.model)
    for option, why in RESERVED.items():
        if option in settings.options:
            raise ModelError(
                f"`{option}` is no option of a model", where=f"options of {settings.model}", why=why
            )
    make = _torchvision if settings.model.startswith(TORCHVISION) else _timm
    if pretrained:
        _pretrained_is_published(settings.model)
        with _download(settings.model):
            model = make(settings, classes, channels, image_size, True)
    else:
        with _options_are_taken(settings):
            model = make(settings, classes, channels, image_size, False)
    if settings.stem == "small":
        small_stem(model, settings.model, channels)
    return model.train()


def _timm(
    settings: ModelSettings, classes: int, channels: int, image_size: int, pretrained: bool
) -> nn.Module:
    options = dict(settings.options)
    facts = timm.get_pretrained_cfg(settings.model)
    if facts is not None and facts.fixed_input_size:
        options.setdefault("img_size", image_size)
    return timm.create_model(
        settings.model, pretrained=pretrained, in_chans=channels, num_classes=classes, **options
    )


def _torchvision(
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
        model = torchvision.models.get_model(name, weights="DEFAULT", **options)
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
    """Torchvision's networks take three channels: gives the first convolution another number.

    Trained weights are summed over the colours (a grey image is three equal colours)."""
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


def _name_is_known(name: str) -> None:
    known = names()
    if name in known or (not name.startswith(TORCHVISION) and ":" not in name and timm.is_model(name)):
        return
    plain = name.removeprefix(TORCHVISION)
    near = difflib.get_close_matches(name, known, 3, 0.6) or [
        other for other in known if plain and plain in other
    ]
    raise ModelError(
        f"there is no architecture named {name}",
        why=f"did you mean {', '.join(near[:3])}?" if near else "neither timm nor torchvision knows it",
        hint="list timm's: python -c 'import timm; print(*timm.list_models(), sep=\"\\n\")'",
    )


@contextlib.contextmanager
def _options_are_taken(settings: ModelSettings) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"{settings.model} cannot be built with these options",
            where="options: " + (", ".join(f"{k}={v!r}" for k, v in settings.options.items()) or "none"),
            why=first_line(error),
            hint="correct or remove the keys under `options`; an image size that the architecture does "
            "not take is set by data.image_size",
        ) from error


def _pretrained_is_published(name: str) -> None:
    _name_is_known(name)
    if name.startswith(TORCHVISION) or timm.is_model_pretrained(name):
        return
    raise ModelError(
        f"no pretrained weights are published for {name}",
        hint="set `pretrained: false`, or name a file of weights with the key `checkpoint`",
    )


@contextlib.contextmanager
def _download(name: str) -> Iterator[None]:
    """Turns every way in which a download can fail into one plain error."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        # Not narrower: the hub's client raises its own HTTP library's errors, which share no base with
        # OSError and differ between its versions.
        raise ModelError(
            f"the pretrained weights of {name} could not be had",
            why=f"{type(error).__name__}: {first_line(error)}",
            hint="with no network: download them elsewhere and name the file with the key `checkpoint`, "
            "fill the library's cache (HF_HOME, TORCH_HOME), or set `pretrained: false`",
        ) from error


def _laid_out(settings: ModelSettings, classes: int, channels: int, image_size: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                return _architecture(settings, classes, channels, image_size, pretrained=False)
        except ModelError:
            # A constructor may read values, which the meta device has not: lay it out in memory.
            return _architecture(settings, classes, channels, image_size, pretrained=False)


def _takes_images(
    model: nn.Module, settings: ModelSettings, classes: int, channels: int, image_size: int
) -> None:
    key = "data.image_size" if settings.image_size is None else "its image_size"
    remedy = (
        f"raise {key} (now {image_size})"
        if settings.stem == "small"
        else f"set `stem: small` for {settings.model}, or raise {key} (now {image_size})"
    )
    if settings.options:
        remedy += ", or correct `options`"
    device = next(model.parameters()).device
    image = torch.zeros(1, channels, image_size, image_size, device=device)
    try:
        with torch.no_grad():
            features = Observer(model.eval())(image)
    except (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
        raise ModelError(
            f"{settings.model} does not take images of {image_size} pixels",
            why=first_line(error),
            hint=remedy,
        ) from error
    if features.logits.shape != (1, classes):
        raise ModelError(
            f"{settings.model} with these options is no classifier",
            why=f"it gives {tuple(features.logits.shape)} for one image, expected (1, {classes})",
            hint="remove `global_pool` and the like from `options`",
        )
    if features.map.numel() == 0 and features.map.shape[1] > 0:
        raise ModelError(
            f"{settings.model} leaves nothing of an image of {image_size} pixels",
            why=f"its final map is {features.map.shape[2]}x{features.map.shape[3]}",
            hint=remedy,
        )
