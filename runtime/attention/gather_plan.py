"""The gather plan of a site: its tokens in grouped order, and for each batch of queries the runs of keys it reads.

The order is that of a GroupHierarchy, for the grid's tokens; global tokens stay where they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch

from planner.patterns.base import Pattern
from planner.patterns.dense import Dense
from planner.patterns.groups import GroupGrid
from planner.patterns.key_groups import key_groups
from planner.patterns.layout import TokenLayout
from planner.patterns.spelling import parse_pattern
from planner.runtime.attention.group_hierarchy import GroupHierarchy, Run, group_runs


class WorkItem(NamedTuple):
    """A run of queries and the runs of keys that all of them read, which are ascending and merged."""

    queries: Run
    keys: tuple[Run, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Count the queries and the keys."""
        return self.queries[1] - self.queries[0], sum(stop - start for start, stop in self.keys)


@dataclass(frozen=True)
class GatherPlan:
    """How to compute a pattern's attention with contiguous runs of tokens.

    order: sequence index of the token at each position of grouped order, (tokens,) int64; inverse: the position of each
    token. items: what is to be attended, in grouped order of the queries. Of patterns with pooled groups only, pooled:
    by the keys of a work item, the groups that are read as their mean, (groups,) bool; group_ids: the group of each of
    the grid's tokens in grouped order, (grid tokens,) int64.
    """

    order: torch.Tensor
    inverse: torch.Tensor
    items: tuple[WorkItem, ...]
    pooled: Mapping[tuple[Run, ...], torch.Tensor] = field(default_factory=dict)
    group_ids: torch.Tensor | None = None

    def batches(self, rows: int) -> Iterator[tuple[WorkItem, ...]]:
        """Batch consecutive items of one shape, up to so many query rows each."""
        for (height, _), alike in itertools.groupby(self.items, key=lambda item: item.shape):
            items, size = list(alike), max(1, rows // height)
            yield from (tuple(items[at : at + size]) for at in range(0, len(items), size))


@lru_cache(maxsize=64)
def make_gather_plan(layout_text: str, pattern_text: str, device: torch.device, token_order: str = "") -> GatherPlan:
    """Make the gather plan for a layout and a pattern by their spellings, once; O(tokens) memory on ``device``.

    token_order: spelling of the GroupHierarchy that tokens are ordered by; the pattern's own groups by default. Each
    group of the pattern must be contiguous in it.
    """
    layout, pattern = TokenLayout.parse(layout_text), parse_pattern(pattern_text)
    tokens = layout.tokens
    if isinstance(pattern, Dense):
        order = torch.arange(tokens, device=device)
        return GatherPlan(order, order, (WorkItem((0, tokens), ((0, tokens),)),))
    grid = pattern.grid(layout.grid.sizes).verify()
    hierarchy = GroupHierarchy.parse(token_order) if token_order else GroupHierarchy.of([pattern])
    grid_order = hierarchy.token_order(grid.sizes)
    runs = group_runs(grid, grid_order)
    if runs is None:
        raise AssertionError(f"groups of {pattern} are not contiguous where tokens are ordered by {token_order}")
    first, last = layout.grid_start, layout.grid_start + len(grid_order)
    order = torch.cat([torch.arange(first), first + grid_order, torch.arange(last, tokens)])
    ends = tuple(run for run in ((0, first), (last, tokens)) if run[0] < run[1])
    shifted = {group: (start + first, stop + first) for group, (start, stop) in runs.items()}
    keys_of, pooled = _keys_read(pattern, grid, shifted, ends, tokens)
    return GatherPlan(
        order.to(device),
        order.argsort().to(device),
        _work_items(keys_of),
        {keys: groups.to(device) for keys, groups in pooled.items()} if pattern.pooled else {},
        grid.numbers()[grid_order].to(device) if pattern.pooled else None,
    )


def _keys_read(
    pattern: Pattern, grid: GroupGrid, runs: Mapping[tuple[int, ...], Run], ends: tuple[Run, ...], tokens: int
) -> tuple[dict[Run, tuple[Run, ...]], dict[tuple[Run, ...], torch.Tensor]]:
    """Return the keys that each run of queries reads, and for these keys the groups outside them, (groups,) bool.

    ends: the runs of global tokens, which read all tokens and are read by all.
    """
    everything = ((0, tokens),)
    keys_of = dict[Run, tuple[Run, ...]](dict.fromkeys(ends, everything))
    outside = {everything: torch.zeros(len(runs), dtype=torch.bool)}
    for group, queries in runs.items():
        read = set(key_groups(pattern, grid, group))
        keys = _merged([*(runs[key] for key in read), *ends])
        keys_of[queries] = keys
        if pattern.pooled:
            outside[keys] = torch.tensor([key not in read for key in runs])
    return keys_of, outside


def _work_items(keys_of: Mapping[Run, tuple[Run, ...]]) -> tuple[WorkItem, ...]:
    """Order runs of queries, and join neighbours that read the same keys (windows held at an edge, say)."""
    items = list[WorkItem]()
    for queries, keys in sorted(keys_of.items()):
        if items and items[-1].keys == keys:
            items[-1] = WorkItem((items[-1].queries[0], queries[1]), keys)
        else:
            items.append(WorkItem(queries, keys))
    return tuple(items)


def _merged(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Join runs that touch."""
    merged = list[Run]()
    for start, stop in sorted(runs):
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)
