from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle import group_of, mask
from strategies import group_grids, layouts, of_kind, patterns, problems

from planner.errors import BadSpelling, MalformedValue, UnknownName
from planner.patterns.base import PATTERNS, Breadth
from planner.patterns.crisscross import CrissCross
from planner.patterns.dense import Dense
from planner.patterns.fields import fields_of
from planner.patterns.key_groups import key_groups
from planner.patterns.neighborhood import Neighborhood
from planner.patterns.spelling import parse_pattern, parse_request

GROUPED = sorted(set(PATTERNS) - {"dense"})


@pytest.mark.parametrize("kind", GROUPED)
@given(group_grids(), st.data())
def test_the_spelling_of_every_kind_follows_from_its_fields_and_round_trips(kind, grid, data):
    pattern = data.draw(of_kind(PATTERNS[kind], grid.group, grid.offset))
    pattern = replace(pattern, pooled=data.draw(st.booleans()))
    assert parse_pattern(str(pattern)) == pattern
    spelled = str(pattern).removeprefix(kind + "{").removesuffix("}").split(",")
    named = {field.partition("=")[0] for field in spelled}
    assert set(PATTERNS[kind].fields()) - {"offset", "pooled"} <= named <= set(PATTERNS[kind].fields())


@pytest.mark.parametrize("kind", GROUPED)
@given(group_grids(), st.data())
def test_the_boxes_of_every_kind_are_its_mask(kind, grid, data):
    pattern = data.draw(of_kind(PATTERNS[kind], grid.group, grid.offset))
    layout = data.draw(layouts(grid.sizes))
    numbers = {coords: number for number, coords in enumerate(grid.coords())}
    reads = torch.zeros(len(numbers), len(numbers), dtype=torch.int64)
    for query, number in numbers.items():
        for key in key_groups(pattern, grid, query):
            reads[number, numbers[key]] += 1
    assert reads.max() <= 1
    group = group_of(layout, grid)
    is_global = group < 0
    expected = reads.bool()[group.clamp(min=0)][:, group.clamp(min=0)] | is_global[:, None] | is_global[None, :]
    assert torch.equal(mask(pattern, layout), expected)


@pytest.mark.parametrize("kind", GROUPED)
@given(group_grids(), st.sampled_from(Breadth))
def test_candidates_of_every_kind_are_well_formed_and_grow_with_the_breadth(kind, grid, breadth):
    found = list(PATTERNS[kind].candidates(grid.group, grid.counts, breadth))
    assert len(found) == len({pattern.verify() for pattern in found})
    assert {pattern.group for pattern in found} <= {grid.group}
    if breadth < Breadth.BUDGET:  # a budget's are for any grid, those of evidence leave something out of this one
        wider = PATTERNS[kind].candidates(grid.group, grid.counts, Breadth(breadth + 1))
        assert set(found) <= set(wider)


@pytest.mark.parametrize("kind", PATTERNS)
def test_the_example_of_every_kind_is_complete(kind):
    assert str(parse_pattern(PATTERNS[kind].example())) == PATTERNS[kind].example()


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        (" dense ", "dense"),
        ("dense{}", "dense"),
        ("neighborhood{group=8x8}", "neighborhood{radius=1,edge=clamp,group=8x8}"),
        ("neighborhood{radius=1x1,group=8x8}", "neighborhood{radius=1,edge=clamp,group=8x8}"),
        ("neighborhood{ edge = clip , radius=0x2 ,group=8x8,}", "neighborhood{radius=0x2,edge=clip,group=8x8}"),
        ("crisscross{group=4x8x8,far=mean}", "crisscross{axes=lines,group=4x8x8,pooled=mean}"),
        ("crisscross{pooled=mean,offset=0x4,group=8x8}", "crisscross{axes=lines,group=8x8,offset=0x4,pooled=mean}"),
    ],
)
def test_fields_have_one_order_and_old_names_are_read(text, spelled):
    assert str(parse_pattern(text)) == spelled


def test_a_kind_with_fields_of_every_type_is_spelled_by_them():
    @dataclass(frozen=True)
    class Every(CrissCross):
        number: int = field(default=2, metadata={"least": 1})
        flag: bool = False
        sizes: tuple[int, ...] = ()

    fields = fields_of(Every)
    assert [fields[name].write(getattr(Every((8, 8)), name)) for name in ("number", "flag", "sizes")] == ["2", "", ""]
    assert (fields["flag"].read("yes"), fields["sizes"].read("3x0"), fields["number"].read("7")) == (True, (3, 0), 7)
    with pytest.raises(ValueError, match="number=0: each number lies between 1 and 1048576"):
        fields["number"].read("0")


def test_a_field_without_a_spelling_is_refused():
    @dataclass(frozen=True)
    class Odd(CrissCross):
        share: float = 0.5

    with pytest.raises(MalformedValue) as error:
        fields_of(Odd)
    assert str(error.value) == (
        "MalformedValue: the pattern Odd is not well formed.\n"
        "  its field share is of a type that has no spelling, <class 'float'>.\n"
        "  Take int, bool, tuple[int, ...] or Literal."
    )


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
        ("crisscross{", f"it is not a kind ({', '.join(PATTERNS)}) with fields in braces, or none"),
        ("crisscross{radius=1}", "crisscross has no field 'radius'; it has axes, group, offset, pooled"),
        ("dense{group=8x8}", "dense has no field 'group'."),
        ("crisscross{axes=diagonals}", "axes is lines or planes, not 'diagonals'"),
        ("neighborhood{edge=wrap}", "edge is clamp or clip, not 'wrap'"),
        ("crisscross{pooled=max}", "pooled is mean, or left out, not 'max'"),
        ("neighborhood{group=8x}", "group=8x is not one to three numbers joined by x"),
        ("neighborhood{group=0x8}", "group=0: each number lies between 1 and 1048576"),
        ("neighborhood{radius}", "'radius' is not one FIELD=VALUE"),
        ("neighborhood{group=8x8,group=4x4}", "is not one FIELD=VALUE"),
        ("crisscross{" + "a" * 500, "with fields in braces"),
    ],
)
def test_bad_spelling_says_what_is_wrong(text, fault):
    with pytest.raises(BadSpelling) as error:
        parse_request(text)
    assert "as a pattern" in str(error.value)
    assert fault in str(error.value)
    assert "Write it like" in str(error.value)


def test_an_unknown_kind_suggests_the_nearest():
    with pytest.raises(UnknownName) as error:
        parse_request("criscross{group=8x8}")
    assert str(error.value) == (
        f"UnknownName: there is no pattern 'criscross'.\n  Known: {', '.join(PATTERNS)}.\n  Did you mean 'crisscross'?"
    )


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: parse_pattern("crisscross"), "it names no group"),
        (
            lambda: parse_pattern("neighborhood{radius=1x1,group=8x8x8}"),
            "radius=1x1 is not one number an axis of group=8x8x8",
        ),
        (lambda: parse_pattern("crisscross{group=8x8,offset=8x0}"), "offset=8x0 is not one number an axis, less than"),
        (lambda: parse_pattern("crisscross{group=8x8,offset=4}"), "offset=4 is not one number an axis of group=8x8"),
        (lambda: CrissCross((2, 2, 2, 2)).verify(), "group=2x2x2x2 is not one to three sizes"),
        (lambda: CrissCross((0, 2)).verify(), "group=0: each number lies between 1 and 1048576"),
        (lambda: CrissCross((2, 2), "rows").verify(), "axes is lines or planes, not 'rows'"),
        (lambda: Neighborhood((2, 2), (-1, 0)).verify(), "radius=-1x0 is not one to three numbers joined by x"),
        (lambda: Neighborhood((2, 2), ()).verify(), "radius=() is not one number an axis of group=2x2"),
    ],
)
def test_incomplete_or_inconsistent_patterns_are_refused(make, fault):
    with pytest.raises(MalformedValue) as error:
        make()
    assert fault in str(error.value)
    assert "Write it like" in str(error.value)
