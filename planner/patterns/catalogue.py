"""The catalogue: the patterns that are worth judging at a site, or worth measuring on a model's own attention.

There is one list of candidates, which registered patterns propose for groups of some shapes; how much is asked says how
much of it is looked at, and a request narrows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from planner.patterns.base import PATTERNS, Breadth, Pattern
from planner.patterns.density import attended_pairs
from planner.patterns.groups import GroupGrid
from planner.patterns.layout import TokenLayout
from planner.patterns.spelling import PatternRequest

GROUPS: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((64,), (256,)),
    2: ((8, 8), (16, 16)),
    3: ((2, 4, 8), (2, 8, 8), (4, 8, 8)),
}
"""Shapes of groups that are tried, by the number of axes: 64 to 256 tokens, GRAT's (arXiv 2505.14687) among them."""


def proposals(
    sizes: Sequence[int],
    breadth: Breadth,
    group: tuple[int, ...] | None = None,
    request: PatternRequest | None = None,
) -> list[Pattern]:
    """Return the candidates for a grid of such sizes, each once, also where groups do not fit.

    group: the shape of groups, those of GROUPS without one; there are no candidates where it has other axes than the
    grid. request: the kind of pattern and those of its fields that are named.
    """
    if group is not None and len(group) != len(sizes):
        return []
    shapes = GROUPS[len(sizes)] if group is None else (group,)
    kinds = tuple(PATTERNS.values()) if request is None else (PATTERNS[request.kind],)

    def proposed() -> Iterator[Pattern]:
        for shape in shapes:
            for kind in kinds:
                yield from kind.candidates(shape, GroupGrid(tuple(sizes), shape).counts, breadth)

    narrowed = proposed() if request is None else map(request.narrow, proposed())
    return list(dict.fromkeys(pattern for pattern in narrowed if pattern is not None))


def catalogue(layout: TokenLayout) -> list[Pattern]:
    """Return the candidates that evidence is recorded of: all that leave something out, then those with group means."""
    sizes = layout.grid.sizes
    found = [
        pattern
        for pattern in proposals(sizes, Breadth.EVIDENCE)
        if all(g <= n for g, n in zip(pattern.group, sizes, strict=True))
        and attended_pairs(pattern, layout) < layout.tokens**2
    ]
    return [*found, *(replace(pattern, pooled=True) for pattern in found)]
