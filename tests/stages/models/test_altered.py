"""A network run again with the maps of its stage ends replaced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from stages.models.create import create
from stages.models.features import Change, Features, Needs
from stages.models.observer import Observer
from stages.models.settings import ModelSettings
from tests.errors import raises

SIZE = 64
ENDS = Needs(ends=True, teacher_again=True)

FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("resnet18", {}),
    ("mobilenetv2_050", {}),
    ("mobilenetv3_small_050", {}),
    ("efficientnet_lite0", {}),
    ("regnetx_002", {}),
    ("convnext_atto", {}),
    ("densenet121", {}),
    ("vit_tiny_patch16_224", {"depth": 6, "embed_dim": 48}),
    ("vit_tiny_patch16_224", {"depth": 6, "embed_dim": 48, "reg_tokens": 3, "global_pool": "avg"}),
    ("deit_tiny_distilled_patch16_224", {"depth": 6, "embed_dim": 48}),
    ("swin_tiny_patch4_window7_224", {"embed_dim": 24}),
    ("mixer_s32_224", {}),
    ("resmlp_12_224", {}),
]
by_family = pytest.mark.parametrize(
    ("model", "options"), FAMILIES, ids=[f"{model} {options}" for model, options in FAMILIES]
)


def network_of(model: str, options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    network = create(ModelSettings(model=model, options=options), classes=5, channels=3, image_size=SIZE)
    # Like after training: initially heads and layer scales are zero, and norms do nothing.
    for parameter in network.parameters():
        if parameter.ndim <= 1 or not parameter.any() or parameter.shape[0] == 5:
            nn.init.normal_(parameter, 0.3, 0.2)
    return network.eval().requires_grad_(False)


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


def all_of(features: Features) -> list[Tensor]:
    return [features.logits, features.embedding, features.map, *features.ends]


@pytest.mark.long
@by_family
def test_changes_that_change_nothing(model: str, options: dict[str, Any]) -> None:
    observer = Observer(network_of(model, options), ENDS)
    received: dict[int, Tensor] = {}

    def unchanged(number: int) -> Change:
        def change(shown: Tensor) -> Tensor:
            received[number] = shown.clone()
            return shown

        return change

    with torch.no_grad():
        plain = observer(images())
        again = observer.altered(images(), {number: unchanged(number) for number in range(len(plain.ends))})
    assert len(received) == len(plain.ends) >= 4
    for actual, expected in zip(all_of(again), all_of(plain), strict=True):
        # Not bit-identical: the replaced map has another memory layout, which changes the order of sums.
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    normed = model.startswith(("vit", "deit", "swin", "mixer", "resmlp"))
    for number, end in enumerate(plain.ends):
        if number == len(plain.ends) - 1 and normed:
            # The deepest end of these is shown after the final norm, and changed before it.
            assert torch.equal(plain.map, end)
            assert received[number].shape == end.shape
        else:
            torch.testing.assert_close(received[number], end, rtol=1e-4, atol=1e-4)


@pytest.mark.long
@by_family
def test_a_change_goes_through_all_that_follows_and_nothing_before(
    model: str, options: dict[str, Any]
) -> None:
    observer = Observer(network_of(model, options), ENDS)
    prompt = torch.zeros((), requires_grad=True)

    def change(shown: Tensor) -> Tensor:
        # Not only a factor or a shift, which a norm would remove.
        wave = torch.sin(torch.arange(shown[0].numel())).reshape(shown[0].shape)
        return shown + wave * (1.0 + prompt)

    plain = observer(images())
    again = observer.altered(images(), {1: change})
    assert torch.equal(again.ends[0], plain.ends[0])
    assert torch.allclose(again.ends[1], change(plain.ends[1]))
    for after, before in zip(all_of(again)[5:], all_of(plain)[5:], strict=True):
        assert not torch.equal(after, before)
    for after, before in zip(all_of(again)[:3], all_of(plain)[:3], strict=True):
        assert not torch.equal(after, before)
    again.logits.square().sum().backward()
    assert prompt.grad is not None
    assert prompt.grad.abs() > 0
    assert all(parameter.grad is None for parameter in observer.parameters())
    # A single pass: the next one is unchanged, and no hook stays on the network.
    assert torch.equal(observer(images()).logits, plain.logits)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in observer.modules())


@pytest.mark.long
@by_family
def test_a_change_at_one_place_stays_there(model: str, options: dict[str, Any]) -> None:
    # Row 0, column 1 of the first end, which is (0, 1) in the map that the network then shows.
    observer = Observer(network_of(model, options), ENDS)

    def mark(shown: Tensor) -> Tensor:
        changed = shown.clone()
        changed[:, :, 0, 1] += 5.0
        return changed

    with torch.no_grad():
        plain, again = observer(images()), observer.altered(images(), {0: mark})
    moved = (again.ends[0] - plain.ends[0]).abs().sum((0, 1))
    assert moved[0, 1] > 0
    assert (moved > 0).sum() == 1


def test_class_and_register_tokens_pass_unchanged() -> None:
    network = network_of("vit_tiny_patch16_224", {"depth": 6, "embed_dim": 48, "reg_tokens": 3})
    observer = Observer(network, ENDS)
    block_inputs: list[Tensor] = []
    network.get_submodule("blocks.1").register_forward_pre_hook(lambda _, args: block_inputs.append(args[0]))
    with torch.no_grad():
        observer(images())
        before = block_inputs[-1]
        observer.altered(images(), {0: torch.zeros_like})
    assert torch.equal(block_inputs[-1][:, :4], before[:, :4])
    assert not block_inputs[-1][:, 4:].any()


def test_a_change_may_be_of_another_precision_and_the_networks_mode_stays() -> None:
    network = network_of("vit_tiny_patch16_224", {"depth": 6, "embed_dim": 48}).train()
    network.get_submodule("blocks.0").eval()
    modes = [part.training for part in network.modules()]
    observer = Observer(network, ENDS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        again = observer.altered(images(), {0: lambda shown: shown.double() * 2})
    assert torch.isfinite(again.logits).all()
    assert [part.training for part in network.modules()] == modes


@pytest.mark.parametrize(
    ("needs", "changes", "message"),
    [
        (ENDS, {4: torch.zeros_like}, "no stage end 4"),
        (ENDS, {-1: torch.zeros_like}, "no stage end -1"),
        (Needs(), {0: torch.zeros_like}, "no stage end 0"),
        (ENDS, {0: lambda shown: shown[:, 1:]}, "does not have the shape"),
    ],
)
def test_changes_that_cannot_be(needs: Needs, changes: dict[int, Any], message: str) -> None:
    with raises(ModelError, what=message):
        Observer(network_of("resnet18", {}), needs).altered(images(), changes)


def test_a_network_whose_stages_are_not_maps_cannot_be_altered() -> None:
    # The output of its stages is a pair of class token and map.
    torch.manual_seed(0)
    network = create(ModelSettings(model="pit_ti_224"), classes=5, channels=3, image_size=224).eval()
    observer = Observer(network, ENDS)
    with raises(ModelError, what="cannot be replaced"):
        observer.altered(torch.zeros(1, 3, 224, 224), {0: torch.zeros_like})
    with raises(ModelError, what="cannot be replaced"):
        observer.require_alterable(224, 3)
    Observer(network_of("resnet18", {}), ENDS).require_alterable(SIZE, 3)
