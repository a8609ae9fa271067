import pytest
import torch
from hypothesis import given, settings
from oracle import group_of, mask
from strategies import problems

from planner.codegen.tiling.index_map import IndexMap
from planner.patterns.crisscross import CrissCross
from planner.patterns.groups import GroupGrid
from planner.patterns.key_groups import key_groups
from planner.patterns.neighborhood import Neighborhood


@given(problems())
def test_key_groups_cover_exactly_the_mask(problem):
    layout, grid, pattern = problem
    table, group = mask(pattern, layout), group_of(layout, grid)
    numbers = {coords: number for number, coords in enumerate(grid.coords())}
    for query, number in numbers.items():
        listed = [numbers[key] for key in key_groups(pattern, grid, query)]
        assert len(listed) == len(set(listed))
        row = table[group == number][0]
        assert set(listed) == set(group[row & (group >= 0)].tolist())


@settings(max_examples=25)
@given(problems())
def test_the_printed_closed_form_equals_the_list(problem):
    _, grid, pattern = problem
    scope = {}
    exec(IndexMap(pattern, grid).source(), scope)
    for query in grid.coords():
        expected = [(grid.start(key), grid.size(key)) for key in key_groups(pattern, grid, query)]
        assert [scope["key_group"](*query, i) for i in range(scope["key_count"](*query))] == expected


@pytest.mark.parametrize(
    "pattern", [CrissCross((4, 8, 8), "planes"), Neighborhood((4, 8, 8), (1, 1, 1), "clip")], ids=str
)
def test_the_closed_form_holds_on_a_real_video_grid(pattern):
    """HunyuanVideo at 720p: 33x45x80 latent tokens, which groups of 4x8x8 do not divide."""
    grid, scope = GroupGrid((33, 45, 80), (4, 8, 8)), {}
    exec(IndexMap(pattern, grid).source(), scope)
    for query in [(0, 0, 0), (8, 5, 9), (4, 3, 5), (8, 0, 9)]:
        expected = [(grid.start(key), grid.size(key)) for key in key_groups(pattern, grid, query)]
        assert [scope["key_group"](*query, i) for i in range(scope["key_count"](*query))] == expected


def test_source_reads_like_this():
    source = IndexMap(CrissCross((8, 8)), GroupGrid((64, 64), (8, 8))).source()
    assert source.splitlines()[0] == "# crisscross{axes=lines,group=8x8} on 64x64"
    assert "def key_count(c0, c1):\n    return 15" in source
    assert "def key_group(c0, c1, i):" in source


def test_positions_stay_exact_beyond_floats():
    side = 2**28
    grid, scope = GroupGrid((side, side), (3, 5)), {}
    pattern = Neighborhood((3, 5), (1, 1), "clip")
    exec(IndexMap(pattern, grid).source(), scope)
    query = tuple(count - 1 for count in grid.counts)
    expected = [(grid.start(key), grid.size(key)) for key in key_groups(pattern, grid, query)]
    assert [scope["key_group"](*query, i) for i in range(scope["key_count"](*query))] == expected
    assert torch.iinfo(torch.int64).max > expected[-1][0] > 2**53
