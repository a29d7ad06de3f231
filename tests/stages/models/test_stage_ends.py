"""The maps at the ends of a network's stages, with the architectures where these are easily wrong."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from stages.models.architecture import stage_ends
from stages.models.create import create
from stages.models.features import Needs
from stages.models.observer import Observer
from stages.models.settings import ModelSettings
from tests.errors import raises

ENDS = Needs(ends=True)
VIT = {"depth": 6, "embed_dim": 48}

SWIN = "swin_tiny_patch4_window7_224"

# Architecture, options, image size, and (C, H, W) of each end.
SHAPES: list[tuple[str, dict[str, Any], int, list[tuple[int, int, int]]]] = [
    ("resnet18", {}, 64, [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]),
    ("mobilenetv2_050", {}, 64, [(16, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2)]),
    ("mobilenetv3_small_050", {}, 64, [(8, 16, 16), (16, 8, 8), (24, 4, 4), (288, 2, 2)]),
    ("efficientnet_lite0", {}, 64, [(24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]),
    ("convnext_atto", {}, 64, [(40, 16, 16), (80, 8, 8), (160, 4, 4), (320, 2, 2)]),
    (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 24},
        64,
        [(24, 16, 16), (48, 8, 8), (96, 4, 4), (192, 2, 2)],
    ),
    ("vit_tiny_patch16_224", VIT, 64, [(48, 4, 4)] * 4),
    ("deit_tiny_distilled_patch16_224", VIT, 64, [(48, 4, 4)] * 4),
    ("mixer_s32_224", {}, 64, [(512, 2, 2)] * 4),
    ("resmlp_12_224", {}, 64, [(384, 4, 4)] * 4),
    ("cifar_resnet8", {}, 32, [(16, 32, 32), (32, 16, 16), (64, 8, 8)]),
    ("cifar_wrn_16_2", {}, 32, [(32, 32, 32), (64, 16, 16), (128, 8, 8)]),
]
by_architecture = pytest.mark.parametrize(
    ("model", "options", "size", "shapes"), SHAPES, ids=[case[0] for case in SHAPES]
)


def network_of(model: str, size: int, options: dict[str, Any] | None = None) -> nn.Module:
    torch.manual_seed(0)
    settings = ModelSettings(model=model, options=options or {})
    network = create(settings, classes=5, channels=3, image_size=size)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d | nn.LayerNorm):  # like after training
            nn.init.normal_(part.weight, 1.0, 0.3)
            nn.init.normal_(part.bias, 0.0, 0.3)
    return network.eval()


def images(height: int, width: int | None = None) -> Tensor:
    return torch.randn(2, 3, height, width or height, generator=torch.Generator().manual_seed(4))


def outputs_of(network: nn.Module, inputs: Tensor, *names: str) -> list[Tensor]:
    """Return the modules' outputs, copied before another layer can overwrite them."""
    outputs: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: outputs.__setitem__(name, output.detach().clone())
        )
        for name in names
    ]
    with torch.no_grad():
        network(inputs)
    for hook in hooks:
        hook.remove()
    return [outputs[name] for name in names]


@by_architecture
def test_ends_come_from_the_shallowest_on_and_change_nothing(
    model: str, options: dict[str, Any], size: int, shapes: list[tuple[int, int, int]]
) -> None:
    network = network_of(model, size, options)
    observer = Observer(network, ENDS)
    with torch.no_grad():
        features, plain = observer(images(size)), Observer(network)(images(size))
    assert [tuple(end.shape[1:]) for end in features.ends] == shapes
    assert list(observer.spec(size, 3).ends) == shapes
    assert torch.equal(features.logits, plain.logits)
    assert torch.equal(features.map, plain.map)


@by_architecture
def test_ends_are_the_stages_outputs_before_an_activation_in_place(
    model: str, options: dict[str, Any], size: int, shapes: list[tuple[int, int, int]]
) -> None:
    network = network_of(model, size, options)
    numbers = stage_ends(network)
    info = getattr(network.feature_info, "info", network.feature_info)
    names = [str(info[number]["module"]) for number in numbers]  # type: ignore[index]
    with torch.no_grad():
        ends = Observer(network, ENDS)(images(size)).ends
    prefix = int(getattr(network, "num_prefix_tokens", 0))
    for index, (end, output) in enumerate(zip(ends, outputs_of(network, images(size), *names), strict=True)):
        if output.ndim == 3:
            # Token by token, row by row, after class and other tokens.
            columns = end.shape[3]
            expected = torch.stack(
                [
                    torch.stack([output[:, prefix + y * columns + x] for x in range(columns)], dim=-1)
                    for y in range(end.shape[2])
                ],
                dim=-2,
            )
        elif output.shape == end.shape:
            expected = output
        else:
            expected = torch.stack([output[..., channel] for channel in range(output.shape[-1])], dim=1)
        if index == len(ends) - 1 and (output.ndim == 3 or output.shape != end.shape):
            expected = network.norm(expected.movedim(1, -1)).movedim(-1, 1)  # type: ignore[operator]
            torch.testing.assert_close(end, expected, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(end, expected)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("vit_tiny_patch16_224", VIT),
        ("deit_tiny_patch16_224", VIT),
        (SWIN, {"embed_dim": 24}),
        ("mixer_s32_224", {}),
        ("resmlp_12_224", {}),
    ],
)
def test_the_deepest_end_of_a_token_network_has_gone_through_the_final_norm(
    model: str, options: dict[str, Any]
) -> None:
    with torch.no_grad():
        features = Observer(network_of(model, 64, options), ENDS)(images(64))
    assert torch.equal(features.ends[-1], features.map)


def test_convnext_pools_before_its_norm_so_that_its_map_is_not_normed() -> None:
    network = network_of("convnext_atto", 64)
    with torch.no_grad():
        features = Observer(network, ENDS)(images(64))
        normed = network.get_submodule("head.norm")(features.embedding[:, :, None, None])
        scores = network.get_submodule("head.fc")(normed.flatten(1))
    assert torch.equal(features.ends[-1], features.map)
    torch.testing.assert_close(features.map.mean((2, 3)), features.embedding)
    torch.testing.assert_close(scores, features.logits)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("cifar_wrn_16_2", 32),
        ("cifar_shufflenetv2", 32),
        ("cifar_mobilenetv2_half", 32),
        ("resnetv2_50", 64),
    ],
)
def test_the_mean_of_the_map_is_the_penultimate_vector_where_the_last_stage_is_not_yet_it(
    model: str, size: int
) -> None:
    network = network_of(model, size)
    vectors: list[Tensor] = []
    classifier = network.get_classifier()  # type: ignore[operator]
    classifier.register_forward_pre_hook(lambda _, inputs: vectors.append(inputs[0].flatten(1)))
    with torch.no_grad():
        features = Observer(network, ENDS)(images(size))
    torch.testing.assert_close(features.map.mean((2, 3)), vectors[0])
    torch.testing.assert_close(features.embedding, vectors[0])
    last = features.ends[-1].mean((2, 3))
    assert last.shape != vectors[0].shape or not torch.allclose(last, vectors[0], atol=0.01)


@pytest.mark.parametrize("prefix", [0, 1, 2, 4])
def test_class_distillation_and_register_tokens_are_counted_not_guessed_from_a_root(prefix: int) -> None:
    # 2x4 patches and one token are nine, a square; 12 of 2x4 and four are not.
    if prefix == 2:
        name, more = "deit_tiny_distilled_patch16_224", {}
    else:
        name = "vit_tiny_patch16_224"
        more = {"class_token": prefix > 0, "reg_tokens": max(prefix - 1, 0), "global_pool": "avg"}
    torch.manual_seed(0)
    network = timm.create_model(name, img_size=(32, 64), num_classes=3, **VIT, **more).eval()
    shown = images(32, 64)
    (tokens,) = outputs_of(network, shown, "blocks.0")
    assert tokens.shape[1] == prefix + 8
    with torch.no_grad():
        features = Observer(network, ENDS)(shown)
    assert [tuple(end.shape[1:]) for end in features.ends] == [(48, 2, 4)] * 4
    assert torch.equal(features.ends[0][:, :, 1, 2], tokens[:, prefix + 6])


def test_grids_that_are_not_square_can_be_altered_and_two_sizes_by_one_network() -> None:
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, num_classes=3, **VIT).eval()
    observer = Observer(network, ENDS)
    for height, width in ((32, 64), (64, 32), (48, 48)):
        received: list[Tensor] = []

        def unchanged(shown: Tensor, received: list[Tensor] = received) -> Tensor:
            received.append(shown)
            return shown

        with torch.no_grad():
            plain = observer(images(height, width))
            again = observer.altered(images(height, width), {1: unchanged})
        assert received[0].shape[2:] == (height // 16, width // 16)
        assert torch.equal(received[0], plain.ends[1])
        torch.testing.assert_close(again.logits, plain.logits)


@by_architecture
def test_ends_have_the_orientation_of_the_image(
    model: str, options: dict[str, Any], size: int, shapes: list[tuple[int, int, int]]
) -> None:
    # A patch of noise in the upper right corner, which changes the first end most in that corner.
    network = network_of(model, size, options)
    plain = torch.zeros(1, 3, size, size)
    spotted = plain.clone()
    spotted[..., : size // 4, 3 * size // 4 :] = images(size)[:1, :, : size // 4, 3 * size // 4 :] * 3
    with torch.no_grad():
        first, second = (Observer(network, ENDS)(shown).ends[0] for shown in (plain, spotted))
    change = (first - second).abs().sum(1)[0]
    rows, columns = change.shape
    row, column = divmod(int(change.argmax()), columns)
    assert row < rows / 2
    assert column >= columns / 2


def test_of_equal_blocks_the_ends_are_those_of_four_stages() -> None:
    def ends(depth: int) -> tuple[int, ...]:
        return stage_ends(timm.create_model("vit_tiny_patch16_224", depth=depth, embed_dim=48, num_classes=2))

    assert ends(12) == (1, 3, 9, 11)
    assert ends(24) == (3, 7, 19, 23)
    assert ends(6) == (0, 1, 4, 5)
    assert ends(1) == (0,)


def test_a_network_without_stages_has_no_ends() -> None:
    with raises(ModelError, what="does not show its stages"):
        Observer(network_of("torchvision/resnet18", 64), ENDS)
