import itertools
import math

import pytest
import torch
from hypothesis import given
from strategies import group_grids

from planner.errors import MalformedValue
from planner.patterns.groups import GroupGrid


def brute_force_order(grid):
    """Tokens sorted by their group, then in raster order within it."""
    tokens = enumerate(itertools.product(*map(range, grid.sizes)))
    front_pad = [(g - o) % g for g, o in zip(grid.group, grid.offset or (0,) * len(grid.group), strict=True)]

    def group(place):
        return [(x + missing) // g for x, g, missing in zip(place, grid.group, front_pad, strict=True)]

    return [raster for raster, place in sorted(tokens, key=lambda item: (group(item[1]), item[0]))]


def test_an_offset_is_the_size_of_the_first_group():
    grid = GroupGrid((20, 9), (8, 4), (3, 0))
    assert grid.counts == (4, 3)
    assert [grid.size((row, 0)) for row in range(4)] == [12, 32, 32, 4]
    assert [grid.size((1, column)) for column in range(3)] == [32, 32, 8]


@given(group_grids())
def test_order_is_a_bijection_and_its_closed_form_is_right(grid):
    order = grid.order()
    assert sorted(order.tolist()) == list(range(math.prod(grid.sizes)))
    assert order.tolist() == brute_force_order(grid)
    assert torch.equal(order[grid.positions()], torch.arange(len(order)))


@given(group_grids())
def test_groups_lie_one_after_the_other(grid):
    at = 0
    for coords in grid.coords():
        assert grid.start(coords) == at
        at += grid.size(coords)
    assert at == math.prod(grid.sizes)


def test_nested_groups_share_an_order_at_the_coarse_level():
    """Groups of 8x8 lie inside groups of 16x16: each coarse group is a permutation of the same tokens."""
    fine, coarse = GroupGrid((48, 32), (8, 8)), GroupGrid((48, 32), (16, 16))
    inside = fine.order().view(3, 2, 2, 2, 64).transpose(1, 2).reshape(6, 256)
    assert torch.equal(inside.sort(1)[0], coarse.order().view(6, 256).sort(1)[0])


@pytest.mark.parametrize(("sizes", "group"), [((4, 4), (5, 4)), ((4, 4), (4,)), ((4,), (0,)), ((), ())])
def test_groups_that_do_not_fit_are_refused(sizes, group):
    with pytest.raises(MalformedValue):
        GroupGrid(sizes, group).verify()


@pytest.mark.parametrize(
    ("sizes", "group", "expected"),
    [((16, 16), (8, 8), (0, 1)), ((8, 24), (8, 8), ()), ((33, 45, 80), (2, 4, 8), (2, 1)), ((12, 20), (8, 8), (0,))],
)
def test_whole_groups_go_up_two_by_two_before_ragged_ones(sizes, group, expected):
    assert GroupGrid(sizes, group).even_axes == expected
