from __future__ import annotations

import pytest
import torch

from pipeline.errors import ModelError
from stages.methods.parts.batch_norm import SingleValueBatchNorm
from stages.methods.parts.branches import separable_convolution
from stages.methods.parts.map_transformer import MapTransformer, map_to_tokens, tokens_to_map
from stages.methods.parts.stage_pairs import paired_stage_ends
from tests.errors import raises
from tests.stages.methods import made


def test_batch_norm_is_torch_s_but_takes_a_single_value() -> None:
    ours, theirs = SingleValueBatchNorm(3), torch.nn.BatchNorm2d(3)
    for maps in (made.maps(2, 3, 1, 1), made.maps(1, 3, 2, 2, seed=1)):
        assert torch.equal(ours(maps), theirs(maps))
    mean = ours.running_mean
    assert mean is not None
    before = mean.clone()
    single = made.maps(1, 3, 1, 1, seed=2)
    assert torch.equal(ours(single), theirs.eval()(single))
    assert torch.equal(mean, before)


@pytest.mark.parametrize("size", [(4, 4), (7, 5), (1, 1)])
def test_a_separable_convolution_halves_the_map(size: tuple[int, int]) -> None:
    maps = separable_convolution(3, 8)(made.maps(2, 3, *size))
    assert maps.shape == (2, 8, -(-size[0] // 2), -(-size[1] // 2))


def test_cells_lie_row_by_row() -> None:
    maps = made.maps(2, 3, 4, 5)
    cells = map_to_tokens(maps)
    assert torch.equal(cells[1, 2 * 5 + 3], maps[1, :, 2, 3])
    assert torch.equal(tokens_to_map(cells, (4, 5)), maps)


def test_blocks_let_every_cell_see_every_other() -> None:
    torch.manual_seed(0)
    maps = made.maps(1, 6, 2, 3).requires_grad_()
    shown = MapTransformer(6, heads=4, count=1)(maps)
    assert shown.shape == maps.shape
    shown[0, 0, 0, 0].backward()
    assert maps.grad is not None
    assert (maps.grad.abs().sum(1) > 0).all()


def test_the_deepest_ends_are_paired() -> None:
    few = made.features(made.maps(2, 4, 2, 2), ends=tuple(made.maps(2, c, 4, 4) for c in (3, 4)))
    many = made.features(made.maps(2, 9, 2, 2), ends=tuple(made.maps(2, c, 8, 8) for c in (6, 7, 8, 9)))
    student, teacher = made.spec(few), made.spec(many)
    assert paired_stage_ends("pat", student, teacher) == [((3, 4, 4), (8, 8, 8)), ((4, 4, 4), (9, 8, 8))]
    assert paired_stage_ends("pat", teacher, student) == [((8, 8, 8), (3, 4, 4)), ((9, 8, 8), (4, 4, 4))]
    with raises(ModelError, what="pat needs a student with at least 3 stage ends"):
        paired_stage_ends("pat", student, teacher, at_least=3)
