import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_specs import problem
from strategies import group_grids, readings

from planner.codegen.spec.body import make_spec
from planner.codegen.spec.candidates import choose_config
from planner.codegen.tiling.tile_order import _read_together, wave_sides
from planner.patterns.spelling import parse_pattern

LINES, AROUND = "crisscross{{axes=lines,group={}}}", "neighborhood{{radius=1,edge=clamp,group={}}}"


@st.composite
def boxes_of_groups(draw):
    """(pattern, groups along each axis, a box of them)"""
    grid = draw(group_grids())
    spans = [sorted(draw(st.tuples(*[st.integers(0, count - 1)] * 2))) for count in grid.counts]
    return draw(readings(grid.group)), grid.counts, [(first, last + 1) for first, last in spans]


@given(boxes_of_groups())
def test_what_groups_read_together_is_what_any_of_them_attends_to(drawn):
    pattern, counts, spans = drawn
    query = torch.tensor(list(itertools.product(*(range(*span) for span in spans))))
    key = torch.tensor(list(itertools.product(*map(range, counts))))
    reads = pattern.attends(list(query.T[:, :, None]), list(key.T[:, None, :]), counts)
    assert _read_together(pattern, counts, spans) == int(reads.expand(len(query), len(key)).any(0).sum())


def sides(layout, pattern):
    """Sides of waves in tokens, None where tiles are ordered by rows."""
    asked = problem(layout, pattern)
    queries = make_spec(asked, choose_config(asked)).program.queries
    if queries.wave == queries.counts:
        return None
    return tuple(side * b for side, b in zip(queries.wave, queries.box, strict=True))


CASES = [
    ("text:512 | h:512 w:512", LINES, "16x16", (128, 128)),
    ("text:512 | h:512 w:512", LINES, "8x8", (128, 128)),
    ("text:512 | h:64 w:64", LINES, "16x16", None),
    ("text:512 | h:512 w:512", AROUND, "16x16", None),
    ("t:30 h:48 w:80 | text:256", LINES, "4x8x8", (16, 24, 40)),
    ("t:30 h:48 w:80 | text:256", AROUND, "4x8x8", None),
]


@pytest.mark.parametrize(("layout", "pattern", "group", "expected"), CASES)
def test_grids_whose_rows_would_read_everything_again_and_again_are_ordered_by_waves(layout, pattern, group, expected):
    assert sides(layout, pattern.format(group)) == expected


def test_a_wave_divides_the_grid_but_for_its_first_axis():
    tall = wave_sides(
        parse_pattern(LINES.format("4x8x8")), (9, 6, 10), (17, 6, 10), (Fraction(1, 2), Fraction(1), Fraction(1)), 132
    )
    assert 17 % tall[0]
    assert 6 % tall[1] == 10 % tall[2] == 0
    assert math.prod(tall) <= 132
