"""The recipe of a site: its tokens' stored order, and for each batch of queries the runs of keys it reads.

In stored order the tokens of each group lie together: grid tokens are sorted by the coordinates of their groups, of the
coarsest ones first where several kinds nest, and then stay in raster order. Global tokens stay where they are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from planner.errors import times
from planner.patterns.base import Pattern
from planner.patterns.dense import Dense
from planner.patterns.groups import GroupGrid
from planner.patterns.key_groups import key_groups
from planner.patterns.layout import TokenLayout
from planner.patterns.spelling import parse_group, parse_pattern

Run = tuple[int, int]
"""(start, stop) positions in stored order."""

Work = tuple[Run, tuple[Run, ...]]
"""A run of queries and the runs of keys that all of them read, which are ascending and merged."""

Nest = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
"""(group, offset) of the groups that tokens are stored by, the coarsest first; spelled ``16x16 8x8``, ``8x8+4x4``."""


@dataclass(frozen=True)
class Recipe:
    """How to compute a pattern's attention with contiguous runs.

    order: sequence index of the token at each stored position, int64. place: the inverse.
    work: what is to be attended, in stored order of the queries. unread: with means of far groups, for the keys of each
    piece of work which groups they leave out, (groups,); numbers: the group of each of the grid's tokens as stored.
    """

    order: torch.Tensor
    place: torch.Tensor
    work: tuple[Work, ...]
    unread: Mapping[tuple[Run, ...], torch.Tensor] = field(default_factory=dict)
    numbers: torch.Tensor | None = None

    def batches(self, rows: int) -> Iterator[tuple[Work, ...]]:
        """The work in order; consecutive pieces of one shape go together, up to so many query rows."""
        for (height, _), alike in itertools.groupby(self.work, key=_shape):
            pieces, size = list(alike), max(1, rows // height)
            yield from (tuple(pieces[at : at + size]) for at in range(0, len(pieces), size))


@lru_cache(maxsize=64)
def make_recipe(layout_text: str, pattern_text: str, device: torch.device, stored: str = "") -> Recipe:
    """The recipe for a layout and a pattern by their spellings, made once; O(tokens) memory.

    stored: the groups that tokens are stored by; the pattern's own by default. Each group must lie together in it.
    """
    layout, pattern = TokenLayout.parse(layout_text), parse_pattern(pattern_text)
    tokens = layout.tokens
    if isinstance(pattern, Dense):
        order = torch.arange(tokens, device=device)
        return Recipe(order, order, (((0, tokens), ((0, tokens),)),))
    grid = pattern.grid(layout.grid.sizes).verify()
    grid_order = order_of(grid.sizes, parse_nest(stored) or nest_of([pattern]))
    runs = runs_of(grid, grid_order)
    if runs is None:
        raise AssertionError(f"groups of {pattern} do not lie together where tokens are stored by {stored}")
    first, last = layout.grid_start, layout.grid_start + len(grid_order)
    order = torch.cat([torch.arange(first), first + grid_order, torch.arange(last, tokens)])
    ends = ((0, first), (last, tokens))
    rows = dict[Run, tuple[Run, ...]]({end: ((0, tokens),) for end in ends if end[0] < end[1]})
    unread = dict[tuple[Run, ...], torch.Tensor]()
    if pattern.pooled:
        unread[((0, tokens),)] = torch.zeros(len(runs), dtype=torch.bool, device=device)
    for coords, (start, stop) in runs.items():
        read = set(key_groups(pattern, grid, coords))
        keys = _merged([*((a + first, b + first) for a, b in (runs[key] for key in read)), *ends])
        rows[start + first, stop + first] = keys
        if pattern.pooled:
            unread[keys] = torch.tensor([key not in read for key in runs], device=device)
    work = list[Work]()
    for queries, keys in sorted(rows.items()):
        # Neighbours in storage that read the same keys (windows held at an edge, rows of one group) are one batch.
        if work and work[-1][1] == keys:
            work[-1] = ((work[-1][0][0], queries[1]), keys)
        else:
            work.append((queries, keys))
    numbers = grid.numbers()[grid_order].to(device) if pattern.pooled else None
    return Recipe(order.to(device), order.argsort().to(device), tuple(work), unread, numbers)


def order_of(sizes: Sequence[int], nest: Nest) -> torch.Tensor:
    """Raster index of the grid token at each stored position, int64."""
    order = torch.arange(math.prod(sizes))
    for group, offset in reversed(nest):
        order = order[GroupGrid(tuple(sizes), group, offset).numbers()[order].argsort(stable=True)]
    return order


def runs_of(grid: GroupGrid, order: torch.Tensor) -> dict[tuple[int, ...], Run] | None:
    """Where each group of a grid lies in an order of its tokens; None if some group does not lie together."""
    numbers, lengths = torch.unique_consecutive(grid.numbers()[order], return_counts=True)
    if len(numbers) != len(numbers.unique()):
        return None
    stops = lengths.cumsum(0).tolist()
    where = dict(zip(numbers.tolist(), zip([0, *stops], stops, strict=False), strict=True))
    return {coords: where[number] for number, coords in enumerate(grid.coords())}


def nest_of(patterns: Iterable[Pattern]) -> Nest:
    """The groups of some patterns, the coarsest first."""
    groups = dict.fromkeys((pattern.group, pattern.offset) for pattern in patterns)
    return tuple(sorted(groups, key=lambda pair: [-g for g in pair[0]]))


def spell_nest(nest: Nest) -> str:
    """``parse_nest(spell_nest(nest)) == nest``."""
    return " ".join(times(group) + (f"+{times(offset)}" if offset else "") for group, offset in nest)


def parse_nest(text: str) -> Nest:
    """Read a spelling; raises BadSpelling."""
    pairs = [item.partition("+") for item in text.split()]
    return tuple(
        (parse_group(group), tuple(map(int, offset.split("x"))) if offset else ()) for group, _, offset in pairs
    )


def _merged(runs: Iterable[Run]) -> tuple[Run, ...]:
    merged = list[Run]()
    for start, stop in sorted(run for run in runs if run[0] < run[1]):
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)


def _shape(piece: Work) -> tuple[int, int]:
    (start, stop), keys = piece
    return stop - start, sum(last - first for first, last in keys)
