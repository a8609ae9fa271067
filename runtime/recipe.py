"""The recipe of a site: its tokens' stored order, and for each batch of queries the runs of keys it reads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from planner.keys import key_runs
from planner.layout import TokenLayout
from planner.pattern import Dense, parse_pattern

Run = tuple[int, int]
"""(start, stop) positions in stored order."""

Work = tuple[Run, tuple[Run, ...]]
"""A run of queries and the runs of keys that all of them read, which are ascending and merged."""


@dataclass(frozen=True)
class Recipe:
    """How to compute a pattern's attention with contiguous runs.

    Stored order is: global tokens first, then the grid group by group.

    order: sequence index of the token at each stored position, int64. place: the inverse.
    work: what is to be attended, in stored order of the queries.
    """

    order: torch.Tensor
    place: torch.Tensor
    work: tuple[Work, ...]

    def batches(self, rows: int) -> Iterator[tuple[Work, ...]]:
        """The work in order; consecutive pieces of one shape go together, up to so many query rows."""
        for (height, _), alike in itertools.groupby(self.work, key=_shape):
            pieces, size = list(alike), max(1, rows // height)
            yield from (tuple(pieces[at : at + size]) for at in range(0, len(pieces), size))


@lru_cache(maxsize=64)
def make_recipe(layout_text: str, pattern_text: str, device: torch.device) -> Recipe:
    """The recipe for a layout and a pattern by their spellings, made once; O(tokens) memory."""
    layout, pattern = TokenLayout.parse(layout_text), parse_pattern(pattern_text)
    tokens, m = layout.tokens, layout.global_tokens
    if isinstance(pattern, Dense):
        order = torch.arange(tokens, device=device)
        return Recipe(order, order, (((0, tokens), ((0, tokens),)),))
    grid = pattern.grid(layout.grid.sizes).verify()
    index, first = torch.arange(tokens), layout.grid_start
    order = torch.cat([index[:first], index[first + layout.grid.tokens :], first + grid.order()])
    work = list[Work]()
    if m:
        work.append(((0, m), ((0, tokens),)))
    for coords in grid.coords():
        start = m + grid.start(coords)
        keys = _with_globals(m, key_runs(pattern, grid, coords))
        queries = (start, start + grid.size(coords))
        # Neighbours in storage that read the same keys (windows held at an edge, rows of one group) are one batch.
        if work and work[-1][1] == keys and work[-1][0][1] == start:
            work[-1] = ((work[-1][0][0], queries[1]), keys)
        else:
            work.append((queries, keys))
    return Recipe(order.to(device), order.argsort().to(device), tuple(work))


def _shape(piece: Work) -> tuple[int, int]:
    (start, stop), keys = piece
    return stop - start, sum(last - first for first, last in keys)


def _with_globals(m: int, runs: tuple[Run, ...]) -> tuple[Run, ...]:
    shifted = [(start + m, stop + m) for start, stop in runs]
    if not m:
        return tuple(shifted)
    if shifted[0][0] == m:
        return ((0, shifted[0][1]), *shifted[1:])
    return ((0, m), *shifted)
