import math

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import problems

from planner.patterns.arithmetic import SYMBOLS
from planner.patterns.axis_set import All, Others, Own, Window
from planner.patterns.crisscross import CrissCross
from planner.patterns.dense import Dense
from planner.patterns.density import attended_pairs, density, grid_pairs
from planner.patterns.layout import TokenLayout
from planner.patterns.neighborhood import Neighborhood

G1, G2, G3, g1, g2, g3, n, g, r, c, d = sympy.symbols("G1 G2 G3 g1 g2 g3 n g r c d", integer=True, positive=True)


@given(problems())
def test_the_formula_counts_the_mask(problem):
    layout, _, pattern = problem
    index = torch.arange(layout.tokens)
    counted = int(pattern.mask_mod(layout)(index[:, None], index[None, :]).sum())
    assert attended_pairs(pattern, layout) == counted
    assert math.isclose(density(pattern, layout), counted / layout.tokens**2)


@given(problems())
def test_symbols_give_the_same_count_as_numbers(problem):
    _, grid, pattern = problem
    symbols = sympy.symbols(f"n0:{len(grid.sizes)}", integer=True, positive=True)
    expression = sympy.sympify(grid_pairs(pattern, symbols, SYMBOLS))
    assert expression.subs(dict(zip(symbols, grid.sizes, strict=True))) == grid_pairs(pattern, grid.sizes)


def of_whole_groups(pattern, counts):
    """Density on a grid of whole groups, as a function of the numbers of groups."""
    sizes = [count * size for count, size in zip(counts, pattern.group, strict=True)]
    return sympy.simplify(grid_pairs(pattern, sizes, SYMBOLS) / sympy.prod(sizes) ** 2)


@pytest.mark.parametrize(
    ("pattern", "counts", "expected"),
    [
        (CrissCross((g1, g2), "lines"), (G1, G2), (G1 + G2 - 1) / (G1 * G2)),
        (CrissCross((g1, g2), "planes"), (G1, G2), (G1 + G2 - 1) / (G1 * G2)),
        (CrissCross((g1, g2, g3), "lines"), (G1, G2, G3), (G1 + G2 + G3 - 2) / (G1 * G2 * G3)),
        (CrissCross((g1, g2, g3), "planes"), (G1, G2, G3), 1 - (1 - 1 / G1) * (1 - 1 / G2) * (1 - 1 / G3)),
        (Neighborhood((g1, g2), (0, 0), "clip"), (G1, G2), 1 / (G1 * G2)),
    ],
    ids=str,
)
def test_density_identities(pattern, counts, expected):
    assert sympy.simplify(of_whole_groups(pattern, counts) - expected) == 0


def test_clamped_window_identity():
    """Away from tiny grids a clamped window always has 2r + 1 groups: G = 2r + 1 + c."""
    count = 2 * r + 1 + c
    assert sympy.simplify(Window(r, "clamp").pairs(count * g, g, SYMBOLS) / (count * g) ** 2 - (2 * r + 1) / count) == 0


def test_clipped_window_identity():
    """A clipped window loses r(r + 1) of the G(2r + 1) pairs of groups at its two edges: G = r + c."""
    count = r + c
    pairs = Window(r, "clip").pairs(count * g, g, SYMBOLS)
    assert sympy.simplify(pairs / g**2 - (count * (2 * r + 1) - r * (r + 1))) == 0


def test_own_and_others_make_all():
    together = Own().pairs(n, g, SYMBOLS) + Others().pairs(n, g, SYMBOLS)
    assert sympy.simplify(together - All().pairs(n, g, SYMBOLS)) == 0


@given(
    st.integers(1, 40), st.integers(1, 12), st.integers(0, 11), st.integers(0, 6), st.sampled_from(["clamp", "clip"])
)
def test_axis_sets_count_themselves(tokens, size, front_pad, radius, edge):
    size = min(size, tokens)
    front_pad = front_pad % size
    count = -(-(tokens + front_pad) // size)
    extents = [min((c + 1) * size - front_pad, tokens) - max(c * size - front_pad, 0) for c in range(count)]
    for along in (All(), Own(), Others(), Window(radius, edge)):
        members = [[along.item(i, c, count) for i in range(along.count(c, count))] for c in range(count)]
        assert all(row == sorted(set(row)) and set(row) <= set(range(count)) for row in members)
        pairs = sum(extents[c] * sum(extents[k] for k in row) for c, row in enumerate(members))
        assert along.pairs(tokens, size, front_pad=front_pad) == pairs


def test_published_densities():
    """GRAT (arXiv 2505.14687) states 93.7 % sparsity for GRAT-X on FLUX at 8192² with groups of 16x16."""
    layout = TokenLayout.parse("h:512 w:512")
    assert round(1 - density(CrissCross((16, 16)), layout), 3) == 0.938
    assert round(1 - density(Neighborhood((16, 16), (1, 1)), layout), 3) == 0.991
    assert density(Dense(), layout) == 1


def test_a_million_tokens_are_no_harder():
    layout = TokenLayout.parse("text:512 | h:1000003 w:999983")
    assert 0 < density(CrissCross((16, 16)), layout) < 1e-4
