"""Drawing: the groups that one query group reads, as a grid of characters and as their closed form."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from planner.codegen.tiling.index_map import IndexMap
from planner.patterns.base import Pattern
from planner.patterns.key_groups import key_groups
from planner.patterns.layout import TokenLayout
from planner.plan.plan import Decision

DRAWN_COLUMNS = 72
DRAWN_ROWS = 40


def draw(decision: Decision) -> list[str]:
    """Draw what each pattern of a sparse site reads, as lines of text."""
    rules, layout = decision.parsed()
    assert layout is not None
    lines = list[str]()
    for pattern in rules.patterns:
        lines += [str(pattern)] * (len(rules.patterns) > 1) + _draw(pattern, layout)
    return lines


def _draw(pattern: Pattern, layout: TokenLayout) -> list[str]:
    """Draw the group grid around the query group in the middle: Q is the group itself, # attended, · not.

    Equal slices along the slowest axis are drawn once; large grids are cut to the part around the query.
    """
    grid = pattern.grid(layout.grid.sizes)
    counts = (1,) * (3 - len(grid.counts)) + grid.counts
    query = tuple(count // 2 for count in grid.counts)
    pad = (0,) * (3 - len(query))
    attended, own = {pad + key for key in key_groups(pattern, grid, query)}, pad + query
    rows, columns = _around(own[1], counts[1], DRAWN_ROWS), _around(own[2], counts[2], DRAWN_COLUMNS)
    cut = len(rows) < counts[1] or len(columns) < counts[2]
    names = " × ".join(name for name, _ in layout.grid.axes)
    lines = [f"groups {'×'.join(map(str, grid.counts))} ({names}){', cut to the part around Q' if cut else ''}"]
    slices = [
        ["".join("Q" if (t, y, x) == own else "#" if (t, y, x) in attended else "·" for x in columns) for y in rows]
        for t in range(counts[0])
    ]
    for first, last in _alike(slices):
        if counts[0] > 1:
            span = f"{first}" if first == last else f"{first} to {last}"
            lines.append(f"{layout.grid.axes[0][0]} = {span}{'  (the query)' if first <= own[0] <= last else ''}")
        lines += [f"  {row}" for row in slices[first]]
    if layout.global_tokens:
        lines.append(f"and {layout.global_tokens} global tokens, which every query reads and which read everything")
    return lines


def index_map(decision: Decision) -> str:
    """Write the closed form of each pattern's key list as Python; c0, c1, … are the query group's coordinates."""
    rules, layout = decision.parsed()
    assert layout is not None
    return "\n".join(IndexMap(pattern, pattern.grid(layout.grid.sizes)).source() for pattern in rules.patterns)


def _alike(slices: Sequence[list[str]]) -> Iterator[tuple[int, int]]:
    """Yield the (first, last) index of each run of equal slices."""
    indices = range(len(slices))
    for _, run in itertools.groupby(indices, key=lambda index: slices[index]):
        members = list(run)
        yield members[0], members[-1]


def _around(centre: int, count: int, limit: int) -> range:
    start = max(0, min(centre - limit // 2, count - limit))
    return range(start, min(count, start + limit))
