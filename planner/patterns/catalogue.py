"""The catalogue: the patterns that evidence is recorded of."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Literal

from planner.patterns.base import CrissCross, Neighborhood, Pattern
from planner.patterns.density import attended_pairs
from planner.patterns.groups import GroupGrid
from planner.patterns.layout import TokenLayout

GROUPS: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((64,), (256,)),
    2: ((8, 8), (16, 16)),
    3: ((2, 4, 8), (2, 8, 8), (4, 8, 8)),
}
RADII = (1, 2, 3)


def catalogue(layout: TokenLayout) -> list[Pattern]:
    """The candidates that evidence is recorded of, each with and without the means of far groups.

    Groups of 64 to 256 tokens, GRAT's among them; of each the criss-cross by lines and planes, and neighbourhoods of
    every radius per axis up to the greatest of RADII, as far as they leave something out.
    """
    sizes = layout.grid.sizes
    found = list[Pattern]()
    for group in GROUPS[len(sizes)]:
        if any(g > n for g, n in zip(group, sizes, strict=True)):
            continue
        kinds: tuple[Literal["lines", "planes"], ...] = ("lines", "planes")[: len(sizes) - 1]
        offered: list[Pattern] = [CrissCross(group, kind) for kind in kinds]
        counts = GroupGrid(sizes, group).counts
        most = [min(RADII[-1], (count - 1) // 2 + (count % 2 == 0)) for count in counts]
        offered += [Neighborhood(group, radius, "clamp") for radius in itertools.product(*(range(r + 1) for r in most))]
        found += [pattern for pattern in offered if attended_pairs(pattern, layout) < layout.tokens**2]
    return [*found, *(replace(pattern, pooled=True) for pattern in found)]  # pyright: ignore[reportArgumentType]
