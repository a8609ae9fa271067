import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle import group_of, mask
from strategies import group_grids, layouts, patterns, problems

from planner.errors import BadSpelling, MalformedValue
from planner.patterns.base import CrissCross, Dense, Neighborhood, parse_pattern, parse_request


@given(problems())
def test_spelling_round_trips(problem):
    _, _, pattern = problem
    assert parse_pattern(str(pattern)) == pattern


@given(problems())
def test_every_query_reads_its_own_group_and_every_global_token(problem):
    layout, grid, pattern = problem
    table, group = mask(pattern, layout), group_of(layout, grid)
    is_global = group < 0
    assert table[:, is_global].all()
    assert table[is_global].all()
    assert table[group[:, None] == group[None, :]].all()


@given(problems())
def test_all_queries_of_a_group_share_their_keys(problem):
    layout, grid, pattern = problem
    table, group = mask(pattern, layout), group_of(layout, grid)
    for number in group.unique():
        rows = table[group == number]
        assert (rows == rows[:1]).all()


@given(group_grids(), st.data())
def test_neighborhoods_grow_with_the_radius(grid, data):
    layout = data.draw(layouts(grid.sizes))
    edge = data.draw(st.sampled_from(["clamp", "clip"]))
    radius = tuple(data.draw(st.integers(0, 2)) for _ in grid.group)
    wider = tuple(r + data.draw(st.integers(0, 2)) for r in radius)
    narrow, wide = (mask(Neighborhood(grid.group, r, edge), layout) for r in (radius, wider))
    assert (wide | ~narrow).all()


@given(problems())
def test_crisscross_and_clipped_neighborhoods_are_symmetric(problem):
    layout, _, pattern = problem
    assume(not (isinstance(pattern, Neighborhood) and pattern.edge == "clamp"))
    table = mask(pattern, layout)
    assert torch.equal(table, table.T)


def test_a_clamped_window_is_not_symmetric():
    from planner.patterns.layout import TokenLayout

    table = mask(Neighborhood((1,), (1,), "clamp"), TokenLayout.parse("n:5"))
    assert table[0].tolist() == [True, True, True, False, False]
    assert table[2].tolist() == [False, True, True, True, False]
    assert not torch.equal(table, table.T)


@given(group_grids(min_axes=2, max_axes=2), st.data())
def test_lines_and_planes_are_the_same_in_two_dimensions(grid, data):
    layout = data.draw(layouts(grid.sizes))
    lines, planes = (mask(CrissCross(grid.group, axes), layout) for axes in ("lines", "planes"))
    assert torch.equal(lines, planes)


@given(group_grids(), st.data())
def test_a_clipped_window_holds_the_groups_within_the_radius(grid, data):
    layout = data.draw(layouts(grid.sizes))
    radius = data.draw(st.integers(0, 3))
    table = mask(Neighborhood(grid.group, (radius,) * len(grid.group), "clip"), layout)
    index = torch.arange(layout.tokens)
    group = torch.stack([x // g for x, g in zip(layout.coordinates(index), grid.group, strict=True)])
    near = (group[:, :, None] - group[:, None, :]).abs().amax(0) <= radius
    assert torch.equal(table, near | layout.is_global(index)[:, None] | layout.is_global(index)[None, :])


def test_dense_reads_everything():
    from planner.patterns.layout import TokenLayout

    assert mask(Dense(), TokenLayout.parse("text:3 | h:2 w:2")).all()


@given(group_grids().flatmap(lambda grid: patterns(grid.group)))
def test_a_pattern_is_one_that_its_own_spelling_asks_for(pattern):
    assert parse_request(str(pattern)).pattern() == pattern


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("criscross", "does not begin with one of dense, neighborhood, crisscross"),
        ("crisscross{radius=1}", "crisscross has no field 'radius'"),
        ("crisscross{axes=diagonals}", "axes is lines or planes, not 'diagonals'"),
        ("neighborhood{edge=wrap}", "edge is clamp or clip, not 'wrap'"),
        ("neighborhood{group=8x}", "one to three numbers joined by x"),
        ("neighborhood{group=0x8}", "each number lies between 1"),
        ("neighborhood{radius}", "'radius' is not one FIELD=VALUE"),
        ("neighborhood{group=8x8,group=4x4}", "is not one FIELD=VALUE"),
        ("crisscross{" + "a" * 500, "does not begin"),
    ],
)
def test_bad_spelling_says_what_is_wrong(text, fault):
    with pytest.raises(BadSpelling) as error:
        parse_request(text)
    assert fault in str(error.value)


@pytest.mark.parametrize("text", ["crisscross", "neighborhood{radius=1x1,group=8x8x8}"])
def test_incomplete_or_inconsistent_patterns_are_refused(text):
    with pytest.raises(MalformedValue):
        parse_pattern(text)
