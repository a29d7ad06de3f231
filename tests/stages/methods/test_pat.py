from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, cast

import pydantic
import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from stages.methods.observed import ObservedTeacher
from stages.methods.parts.prompts import Prompt
from stages.methods.parts.pyramid import pyramid_loss
from stages.methods.parts.region_attention import RegionAttention
from stages.methods.pat import Pat
from stages.methods.settings import PatSettings
from stages.models.create import create
from stages.models.features import Features
from stages.models.observer import Observer
from stages.models.settings import ModelSettings
from tests.errors import raises
from tests.stages.methods import made, reference, reference_unlike

Sizes = list[tuple[int, int, int]]

STUDENT: Sizes = [(3, 8, 8), (4, 6, 4), (5, 2, 2)]
PAIRS: dict[str, tuple[Sizes, Sizes]] = {
    "as many": (STUDENT, [(6, 9, 8), (7, 4, 4), (8, 4, 4)]),
    "teacher has more": (STUDENT[1:], [(4, 8, 8), (6, 8, 8), (7, 4, 4), (8, 4, 4)]),
    "student has more": (STUDENT, [(7, 4, 5), (8, 2, 3)]),
}
SMALL: dict[str, Any] = {"queries": 16, "width": 12, "heads": 3}


def pair(name: str, images: int = 3) -> tuple[Features, Features]:
    student, teacher = PAIRS[name]
    return made.of_ends(student, images, 1), made.of_ends(teacher, images, 20)


def method(student: Features, teacher: Features, beta: float = 300.0, **keys: Any) -> Pat:
    """With prompts that change the teacher's answers from the start."""
    torch.manual_seed(1)
    made_method = Pat(made.spec(student), made.spec(teacher), **SMALL, **keys)
    for prompt in made_method.prompts:
        nn.init.constant_(cast(Prompt, prompt).beta, beta)
    return made_method


def loss(made_method: Pat, student: Features, teacher: Features) -> Tensor:
    head = made.head(teacher.map.shape[1], 20)
    value: Tensor = made_method(
        student, teacher, made.batch(made.labels(len(student.map)), head, shown=teacher)
    )
    return value


# --- the parts


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (5, 3), (1, 1), (7, 2)])
def test_region_attention_agrees_with_the_equation(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    attention = RegionAttention([(3, *size), (4, 2, 2)], [(5, 3, 6), (6, 4, 4)], grid=2, width=6, heads=2)
    maps = [made.maps(3, 3, *size, seed=1), made.maps(3, 4, 2, 2, seed=2)]
    found = attention(maps)
    double = copy.deepcopy(attention).double()
    tokens = [
        _patches(end, cast(nn.Sequential, part)) for end, part in zip(maps, double.embeddings, strict=True)
    ]
    norm, places = double.norm, torch.tensor(reference_unlike.positions(8, 6), dtype=torch.float64)
    every = norm(torch.cat(tokens, 1)) @ double.queries_keys_values.weight.T + double.queries_keys_values.bias
    mixed = []
    for image in every:
        queries, keys, values = image.split(6, dim=1)
        mixed.append(
            reference_unlike.attention(
                (queries + places).tolist(), (keys + places).tolist(), values.tolist(), heads=2
            )
        )
    result = torch.tensor(mixed, dtype=torch.float64)
    for number, (wanted, shape) in enumerate(zip(found, [(5, 3, 6), (6, 4, 4)], strict=True)):
        own = result[:, 4 * number : 4 * number + 4].transpose(1, 2).reshape(3, 6, 2, 2)
        mean, spread = own.mean((0, 2, 3), keepdim=True), own.var((0, 2, 3), unbiased=False, keepdim=True)
        own = (own - mean) / (spread + 1e-5).sqrt()
        # Resized before the projection, where the code does it after.
        own = reference_unlike.stretched(own, shape[1:])
        projection = cast(nn.Conv2d, cast(nn.Sequential, double.projections[number])[1])
        expected = torch.einsum("dc,bchw->bdhw", projection.weight.detach()[:, :, 0, 0], own)
        assert torch.allclose(wanted.double(), expected, atol=1e-5)


def _patches(maps: Tensor, embedding: nn.Sequential) -> Tensor:
    """(B, 4, width): a linear layer on each quarter of the map, stretched to whole patches."""
    tall, wide = (-(-side // 2) for side in maps.shape[-2:])
    whole = reference_unlike.stretched(maps.double(), (2 * tall, 2 * wide))
    layer = cast(nn.Conv2d, embedding[1])
    assert layer.bias is not None
    tokens = []
    for row in range(2):
        for column in range(2):
            patch = whole[:, :, row * tall : (row + 1) * tall, column * wide : (column + 1) * wide]
            tokens.append(patch.flatten(1) @ layer.weight.flatten(1).T + layer.bias)
    return torch.stack(tokens, 1).detach()


def test_a_prompt_starts_as_nothing_and_adds_by_beta() -> None:
    torch.manual_seed(0)
    prompt = Prompt((20, 6, 5), (7, 3, 2))
    maps, gap = made.maps(2, 20, 6, 5, seed=1), made.maps(2, 7, 3, 2, seed=2)
    assert torch.equal(prompt(maps, gap), maps)
    nn.init.constant_(prompt.beta, 2.0)
    aligned = torch.einsum(
        "dc,bchw->bdhw",
        cast(nn.Conv2d, prompt.align[0]).weight[:, :, 0, 0].double(),
        reference_unlike.stretched(gap.double(), (6, 5)),
    )
    double = copy.deepcopy(prompt).double()
    mixed = double.mix(torch.cat([maps.double(), aligned], 1))
    gates = double.gate(torch.stack([mixed[:, :, h, w] for h in range(6) for w in range(5)]).mean(0))
    added = double.last(torch.einsum("bchw,bc->bchw", mixed, gates))
    assert torch.allclose(prompt(maps, gap).double(), maps.double() + 2.0 * added, atol=1e-5)
    assert gates.min() > 0.0
    assert gates.max() < 1.0


# --- the loss


def expected(made_method: Pat, student: Features, teacher: Features, **keys: Any) -> float:
    """The equation, the teacher of `made` run by hand: what a prompt changes shifts what lies behind."""
    settings, double = PatSettings(name="pat", **SMALL, **keys), copy.deepcopy(made_method).double()
    count = min(len(student.ends), len(teacher.ends))
    skipped = len(teacher.ends) - count
    aligned = double.attention([end.double() for end in student.ends[-count:]])
    prompts = list(double.prompts)
    shift, before = torch.zeros(len(student.map), 1, 1, 1, dtype=torch.float64), []
    for n, end in enumerate(teacher.ends):
        came = end.double() + shift
        before.append(came)
        following = n + 1 - skipped  # the pair whose stage comes next
        if 0 <= following < count:
            gap = aligned[following] - teacher.ends[n + 1].double()
            changed = prompts.pop(0)(came, gap)
            shift = shift + (changed - came).mean((1, 2, 3), keepdim=True)
    assert not prompts
    head = copy.deepcopy(made.head(teacher.map.shape[1], 20)).double()
    logits = head(before[-1].mean((2, 3)))
    total = settings.lambda_kd * reference.kd(student.logits, teacher.logits, settings.temperature)
    total += settings.lambda_prompt * reference.kd(logits, teacher.logits, settings.temperature)
    distances = [pyramid_loss(a, b).item() for a, b in zip(aligned, before[skipped:], strict=True)]
    return total + settings.lambda_features * sum(distances)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    "keys",
    [{}, {"lambda_kd": 0.0}, {"lambda_features": 0.1, "lambda_prompt": 7.0, "temperature": 2.0}],
    ids=str,
)
def test_agrees_with_the_equation(name: str, keys: dict[str, Any]) -> None:
    student, teacher = pair(name)
    made_method = method(student, teacher, **keys)
    found = loss(made_method, student, teacher)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected(made_method, student, teacher, **keys), rel=1e-4)


def test_before_the_prompts_have_learnt_the_teacher_is_the_unprompted_one() -> None:
    student, teacher = pair("as many")
    quiet = loss(method(student, teacher, beta=0.0, lambda_prompt=0.0), student, teacher)
    held = loss(method(student, teacher, beta=0.0, lambda_prompt=9.0), student, teacher)
    assert quiet.item() == pytest.approx(held.item())


def test_the_feedback_is_this_batch_s_own() -> None:
    # In evaluation mode nothing else joins the images: the batch's loss is the mean of theirs.
    student, teacher = pair("as many", images=4)
    made_method = method(student, teacher).eval()
    whole = loss(made_method, student, teacher)
    single = []
    for n in range(4):
        one, other = (
            made.features(seen.map[n : n + 1], ends=tuple(end[n : n + 1] for end in seen.ends), seed=seed)
            for seen, seed in ((student, 1), (teacher, 20))
        )
        single.append(loss(made_method, one, other).item())
    assert sum(single) / 4 == pytest.approx(whole.item(), rel=1e-4)
    assert loss(made_method, student, teacher).item() == whole.item()


def test_the_feedback_carries_no_gradient_to_the_student() -> None:
    # Through the feedback alone does the third term know the student.
    gradients, losses = [], []
    for weight in (0.0, 100.0):
        student, teacher = pair("as many")
        for end in student.ends:
            end.requires_grad_()
        value = loss(method(student, teacher, lambda_prompt=weight), student, teacher)
        value.backward()
        losses.append(value.item())
        gradients.append([end.grad for end in student.ends])
    assert losses[1] > losses[0] + 1.0
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        assert other is not None
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.long
def test_the_prompts_learn_and_the_attention_too() -> None:
    torch.manual_seed(0)
    student, teacher = pair("teacher has more", images=8)
    made_method = method(student, teacher, beta=0.0)
    optimizer = torch.optim.Adam(made_method.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(made_method, student, teacher)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(cast(Prompt, prompt).beta.item() != 0.0 for prompt in made_method.prompts)


@pytest.mark.long
@pytest.mark.parametrize("architecture", ["test_vit", "test_convnext", "test_resnet"])
def test_real_teachers_are_prompted(architecture: str) -> None:
    torch.manual_seed(0)
    size = 160 if architecture == "test_vit" else 64
    facts = {"classes": 5, "channels": 3, "image_size": size}
    needs = Pat.needs()
    ours = Observer(create(ModelSettings(model="test_efficientnet"), **facts), needs)
    network = create(ModelSettings(model=architecture), **facts).requires_grad_(False).eval()
    theirs = Observer(network, needs)
    made_method = Pat(ours.spec(size, 3), theirs.spec(size, 3), **SMALL)
    images = made.maps(2, 3, size, size)
    student = ours(images)
    with torch.no_grad():
        teacher = theirs(images)
    batch = replace(made.batch(made.labels(2)), teacher=ObservedTeacher(theirs, images))
    for prompt in made_method.prompts:
        nn.init.constant_(cast(Prompt, prompt).beta, 0.1)
    made_method(student, teacher, batch).backward()
    for name, parameter in made_method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(parameter.grad is None for parameter in network.parameters())


# --- what it refuses


def test_one_stage_end_is_too_few() -> None:
    one = made.features(made.maps(2, 4, 4, 4), ends=(made.maps(2, 4, 4, 4),))
    with raises(ModelError, what="pat needs a teacher with at least 2 stage ends"):
        method(pair("as many")[0], one)


@pytest.mark.parametrize(
    ("keys", "told"), [({"queries": 20}, "near are 16, 36"), ({"width": 10, "heads": 4}, "must divide")]
)
def test_settings_that_do_not_divide_are_refused(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=told):
        PatSettings(name="pat", **keys)
