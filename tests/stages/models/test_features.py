from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from stages.models.create import create
from stages.models.features import Needs
from stages.models.observer import Observer
from stages.models.settings import ModelSettings
from tests.errors import raises

SIZE = 64

# Architecture, options, the map's shape at 64 pixels, mean of the map is the pooled vector, and the
# logits are one linear layer on it.
ARCHITECTURES: list[tuple[str, dict[str, Any], tuple[int, int, int], bool, bool]] = [
    ("resnet18", {}, (512, 2, 2), True, True),
    ("mobilenetv2_050", {}, (1280, 2, 2), True, True),
    ("mobilenetv3_small_050", {}, (288, 2, 2), True, False),
    ("efficientnet_lite0", {}, (1280, 2, 2), True, True),
    ("regnetx_002", {}, (368, 2, 2), True, True),
    ("convnext_atto", {}, (320, 2, 2), True, False),
    ("vit_tiny_patch16_224", {"depth": 2}, (192, 4, 4), False, False),
    ("vit_tiny_patch16_224", {"depth": 2, "reg_tokens": 3, "global_pool": "avg"}, (192, 4, 4), True, False),
    (
        "vit_tiny_patch16_224",
        {"depth": 2, "class_token": False, "global_pool": "avg", "fc_norm": False},
        (192, 4, 4),
        True,
        True,
    ),
    ("deit_tiny_patch16_224", {"depth": 2}, (192, 4, 4), False, False),
    ("deit_tiny_distilled_patch16_224", {"depth": 2}, (192, 4, 4), False, False),
    ("swin_tiny_patch4_window7_224", {"embed_dim": 24}, (192, 2, 2), True, True),
    ("mixer_s32_224", {}, (512, 2, 2), True, True),
    ("resmlp_12_224", {}, (384, 4, 4), True, True),
    ("mobilevit_xxs", {}, (320, 2, 2), True, True),
    ("efficientvit_b0", {}, (1024, 2, 2), True, False),
    ("torchvision/resnet18", {}, (512, 2, 2), True, True),
    ("torchvision/mobilenet_v3_small", {}, (576, 2, 2), True, False),
    ("torchvision/swin_t", {}, (768, 2, 2), True, True),
]


def network_of(model: str, *, size: int = SIZE, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    network = create(ModelSettings(model=model, options=options), classes=7, channels=3, image_size=size)
    # Norms like after training: initially they hardly do anything.
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return network


def images(height: int = SIZE) -> Tensor:
    return torch.randn(2, 3, height, SIZE, generator=torch.Generator().manual_seed(4))


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "options", "shape", "averages", "linear"),
    ARCHITECTURES,
    ids=[f"{a[0]} {a[1]}" for a in ARCHITECTURES],
)
def test_map_embedding_and_logits(
    model: str, options: dict[str, Any], shape: tuple[int, int, int], averages: bool, linear: bool
) -> None:
    network = network_of(model, **options).eval()
    observer = Observer(network)
    with torch.no_grad():
        features, logits = observer(images()), network(images())
    assert torch.equal(features.logits, logits)
    assert features.map.shape == (2, *shape)
    same = features.map.mean((2, 3)).shape == features.embedding.shape and torch.allclose(
        features.map.mean((2, 3)), features.embedding, atol=1e-5
    )
    assert same == averages
    spec = observer.spec(SIZE, 3)
    assert (spec.classes, spec.map, spec.stages) == (7, shape, ())
    assert spec.embedding == features.embedding.shape[1]
    assert spec.head_is_linear_on_pooled == linear
    if linear:
        # The mean over all places of the local logits is the network's own logit.
        local = observer.local_logits(features.map.flatten(2).transpose(1, 2))
        assert local.dtype == torch.float32
        assert torch.allclose(local.mean(1), logits, atol=1e-4)


@pytest.mark.parametrize("prefix", [0, 1, 4])
def test_class_and_register_tokens_are_no_places(prefix: int) -> None:
    network = network_of(
        "vit_tiny_patch16_224",
        depth=1,
        class_token=prefix > 0,
        reg_tokens=max(prefix - 1, 0),
        global_pool="avg",
    ).eval()
    with torch.no_grad():
        tokens = network.forward_features(images())  # type: ignore[operator]
        shown = Observer(network)(images()).map
    assert tokens.shape[1] == prefix + 16
    # Row by row: place (1, 2) of a 4x4 grid is token 6 after the prefix.
    assert torch.equal(shown[:, :, 1, 2], tokens[:, prefix + 6])


def test_places_of_a_grid_that_is_not_square() -> None:
    # 2x4 patches and a class token are nine tokens: no square of three.
    network = timm.create_model("vit_tiny_patch16_224", img_size=(32, 64), depth=1, num_classes=3).eval()
    with torch.no_grad():
        tokens = network.forward_features(images(height=32))
        shown = Observer(network)(images(height=32)).map
    assert shown.shape == (2, 192, 2, 4)
    assert torch.equal(shown[:, :, 1, 2], tokens[:, 1 + 6])


@pytest.mark.parametrize("model", ["swin_tiny_patch4_window7_224", "resnet18"])
def test_the_map_has_the_orientation_of_the_image(model: str) -> None:
    # A patch of noise in the upper right corner: that is where the map changes most.
    options = {"embed_dim": 24} if model.startswith("swin") else {}
    network = network_of(model, size=128, **options).eval()
    plain = torch.zeros(1, 3, 128, 128)
    spotted = plain.clone()
    spotted[..., :32, 96:] = 3.0
    with torch.no_grad():
        change = (Observer(network)(spotted).map - Observer(network)(plain).map).abs().sum(1)[0]
    columns = change.shape[1]
    assert change.argmax().item() in (columns - 1, columns - 2, 2 * columns - 1)


@pytest.mark.parametrize(
    ("model", "options", "numbers", "shapes"),
    [
        ("resnet18", {}, (-1, 0, 2), [(512, 2, 2), (64, 32, 32), (128, 8, 8)]),
        ("mobilenetv3_small_050", {}, (0, -1), [(16, 32, 32), (288, 2, 2)]),
        ("vit_tiny_patch16_224", {"depth": 3}, (1, -1), [(192, 4, 4), (192, 4, 4)]),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24}, (0, 3), [(24, 16, 16), (192, 2, 2)]),
        ("convnext_atto", {}, (1,), [(80, 8, 8)]),
    ],
)
def test_stages_come_in_the_order_asked_from_the_same_pass(
    model: str, options: dict[str, Any], numbers: tuple[int, ...], shapes: list[tuple[int, int, int]]
) -> None:
    network = network_of(model, **options).eval()
    passes: list[int] = []
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    first.register_forward_hook(lambda *_: passes.append(1))
    observer = Observer(network, Needs(stages=tuple(numbers)))
    with torch.no_grad():
        features = observer(images())
        assert len(passes) == 1
        plain = Observer(network)(images())
    assert [tuple(stage.shape[1:]) for stage in features.stages] == shapes
    assert features.stage_numbers == numbers
    assert torch.equal(features.layer(numbers[0]), features.stages[0])
    assert features.layer(None) is features.map
    assert torch.equal(features.map, plain.map)
    assert torch.equal(features.logits, plain.logits)
    spec = observer.spec(SIZE, 3)
    assert list(spec.stages) == shapes
    assert spec.shape_of(numbers[-1], "teacher") == shapes[-1]


def test_the_deepest_stage_of_a_token_network_is_after_the_norm() -> None:
    network = network_of("vit_tiny_patch16_224", depth=2).eval()
    with torch.no_grad():
        features = Observer(network, Needs(stages=(-1,)))(images())
    assert torch.equal(features.stages[0], features.map)


def test_a_stage_that_is_not_there() -> None:
    with raises(ModelError, what="no stage 5") as caught:
        Observer(network_of("resnet18"), Needs(stages=(5,)))
    assert "0 to 4" in caught.value.why
    with raises(ModelError, what="does not show its stages"):
        Observer(network_of("torchvision/resnet18"), Needs(stages=(1,)))


def test_networks_that_show_no_map_still_give_logits() -> None:
    # It pools by a function, which no hook sees.
    network = network_of("torchvision/shufflenet_v2_x0_5").eval()
    observer = Observer(network)
    with torch.no_grad():
        features = observer(images())
        assert torch.equal(features.logits, network(images()))
    assert features.embedding.shape == (2, 1024)
    spec = observer.spec(SIZE, 3)
    assert not spec.head_is_linear_on_pooled
    with raises(ModelError, what="the student's architecture shows no map"):
        spec.shape_of(None, "student")


def test_a_head_that_is_not_linear_on_the_map_judges_no_part_of_it() -> None:
    network = network_of("mobilenetv3_small_050").eval()
    with torch.no_grad():
        shown = Observer(network)(images()).map
    with raises(ModelError, what="cannot classify parts"):
        Observer(network).local_logits(shown.flatten(2).transpose(1, 2))


def test_reading_the_shapes_changes_nothing() -> None:
    network = network_of("mobilenetv3_small_050").train()
    network.get_submodule("blocks.0").eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    state = torch.get_rng_state()
    Observer(network, Needs(stages=(0,))).spec(SIZE, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.long
@pytest.mark.parametrize("model", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_training_under_autocast_and_channels_last(model: str) -> None:
    options = {"depth": 1} if model.startswith("vit") else {}
    network = network_of(model, **options).train().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        features = Observer(network)(images().to(memory_format=torch.channels_last))
    (features.map.float().sum() + features.embedding.float().sum() + features.logits.float().sum()).backward()
    assert features.map.ndim == 4
    first = next(network.parameters())
    assert any(parameter.grad is not None for parameter in network.parameters())
    assert first.dtype == torch.float32
