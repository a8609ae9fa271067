"""How much a pattern attends to, in closed form: the cost of a site does not grow with its tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from planner.patterns.arithmetic import INTS, Arithmetic, Number
from planner.patterns.base import Pattern
from planner.patterns.dense import Dense
from planner.patterns.layout import TokenLayout
from planner.patterns.rules import Rules


def grid_pairs(pattern: Pattern, sizes: Sequence[Number], arithmetic: Arithmetic = INTS) -> Number:
    """Count (query token, key token) pairs of grid tokens that a pattern attends to.

    Boxes are disjoint, and within a box the axes are independent: a sum of products.
    """
    return sum(
        math.prod(
            along.pairs(n, g, arithmetic, front_pad)
            for along, n, g, front_pad in zip(box, sizes, pattern.group, pattern.front_pad, strict=True)
        )
        for box in pattern.boxes()
    )


@lru_cache(maxsize=4096)
def attended_pairs(pattern: Pattern, layout: TokenLayout) -> int:
    """Count the pairs attended at a site: the pattern's on the grid, and every pair with a global token.

    With pooled groups, also one pair for every query of the grid and every group.
    """
    if isinstance(pattern, Dense):
        return layout.tokens**2
    sizes = layout.grid.sizes
    means = layout.grid.tokens * math.prod(pattern.grid(sizes).counts) if pattern.pooled else 0
    return layout.tokens**2 - layout.grid.tokens**2 + grid_pairs(pattern, sizes) + means


def density(pattern: Pattern, layout: TokenLayout) -> float:
    """Return attended pairs over all pairs, in (0, 1]."""
    return attended_pairs(pattern, layout) / layout.tokens**2


def rules_density(rules: Rules, layout: TokenLayout, heads: int) -> float:
    """Return the density of rules, on average over the heads and the noise levels."""
    return sum(share * density(rule.pattern, layout) for rule, share in rules.shares(heads))
