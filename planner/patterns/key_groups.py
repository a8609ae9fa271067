"""Which key groups a query group reads, in numbers: the boxes of a pattern written out for one query group."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from planner.patterns.base import Pattern
from planner.patterns.groups import GroupGrid


def key_groups(pattern: Pattern, grid: GroupGrid, query: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the coordinates of the key groups that one query group reads, each once, box by box."""
    for box in pattern.boxes():
        yield from itertools.product(
            *(
                [along.item(i, c, G) for i in range(along.count(c, G))]
                for along, c, G in zip(box, query, grid.counts, strict=True)
            )
        )
