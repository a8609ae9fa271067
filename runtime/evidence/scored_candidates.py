"""Candidates prepared for scoring: the key cells that each candidate reads, and the groups whose means it reads.

A *reading* is the set of keys that a candidate reads exactly. Candidates that differ only in pooled groups share one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from planner.patterns.base import Pattern
from planner.patterns.layout import TokenLayout
from planner.patterns.spelling import parse_pattern
from planner.runtime.evidence.key_cells import group_ids, key_cells

Pairs = tuple[torch.Tensor, torch.Tensor]
"""Indices of some candidates, and of their readings; (pairs,) int64 both."""


@dataclass(frozen=True)
class PooledGroups:
    """One kind of groups whose means some candidates read.

    members: (cells, groups) float32, 1 where a cell is in a group. readings: the range of the readings of this kind.
    pooled: (queries, readings of this kind, groups) bool, true where a query reads no key of a group. pairs:
    candidates, and their readings, counted from the first of this kind.
    """

    members: torch.Tensor
    readings: slice
    pooled: torch.Tensor
    pairs: Pairs


@dataclass(frozen=True)
class ScoredCandidates:
    """The candidates of a layout, and the queries and key cells on which they are scored.

    queries: (queries,) int64 sequence indices of the drawn queries. count: of candidates. keys: (cells, size) int64
    sequence indices. is_real: (cells, size) bool, false for padding. reads: (queries, readings, cells) bool, true where
    a query reads a cell. exact: candidates without pooled groups, and their readings. kinds: the groups of the other
    candidates.
    """

    queries: torch.Tensor
    count: int
    keys: torch.Tensor
    is_real: torch.Tensor
    reads: torch.Tensor
    exact: Pairs
    kinds: tuple[PooledGroups, ...]

    def elements(self, channels: int) -> int:
        """Count the elements that scoring holds at once for each query of each head."""
        cells, size = self.keys.shape
        means = max((math.prod(kind.pooled.shape[1:]) for kind in self.kinds), default=0)
        return cells * (2 * channels + size) + 2 * self.reads.shape[1] * channels + means


@lru_cache(maxsize=32)
def make_candidates(layout_text: str, texts: tuple[str, ...], queries: int, device: torch.device) -> ScoredCandidates:
    """Prepare candidates, by their spellings, for a layout with one grid; tensors are on ``device``.

    queries: how many queries to draw from the grid, all if it has fewer; a grid's drawn queries are always the same.
    """
    layout, patterns = TokenLayout.parse(layout_text), [parse_pattern(text) for text in texts]
    rows = _draw_queries(layout, queries).to(device)
    by_groups = dict[tuple[tuple[int, ...], ...], dict[int, Pattern]]()
    for index, pattern in enumerate(patterns):
        by_groups.setdefault((pattern.group, pattern.offset), {})[index] = pattern
    ids = [group_ids(layout, next(iter(members.values()))) for members in by_groups.values()]
    keys, is_real = key_cells(layout, ids)
    readings, kinds = list[Pattern](), list[PooledGroups]()
    for members, own_ids in zip(by_groups.values(), ids, strict=True):
        own = list(dict.fromkeys(pattern.near for pattern in members.values()))
        kinds += _pooled_groups(layout, members, own, len(readings), rows, own_ids, keys)
        readings += own
    exact = [(index, readings.index(pattern)) for index, pattern in enumerate(patterns) if not pattern.pooled]
    keys, is_real = keys.to(device), is_real.to(device)
    reads = _reads(layout, readings, rows, keys[:, 0])
    return ScoredCandidates(rows, len(texts), keys, is_real, reads, _pairs(exact, device), tuple(kinds))


def _draw_queries(layout: TokenLayout, queries: int) -> torch.Tensor:
    """Draw queries of the grid, (queries,) int64 sequence indices in ascending order."""
    drawn = torch.randperm(layout.grid.tokens, generator=torch.Generator().manual_seed(0))[:queries]
    return layout.grid_start + drawn.sort().values


def _pooled_groups(
    layout: TokenLayout,
    members: Mapping[int, Pattern],
    readings: Sequence[Pattern],
    first: int,
    queries: torch.Tensor,
    ids: torch.Tensor,
    keys: torch.Tensor,
) -> list[PooledGroups]:
    """Return one kind of groups in a list; the list is empty where no candidate reads their means.

    members: the candidates of this kind, by index. readings: their readings, numbered from ``first`` on. queries:
    (queries,) int64. ids: (tokens,) int64. keys: (cells, size) int64.
    """
    pairs = [(index, readings.index(pattern.near)) for index, pattern in members.items() if pattern.pooled]
    if not pairs:
        return []
    is_member = ids[keys[:, 0], None] == torch.arange(int(ids.max()) + 1)
    a_key_of_each_group = keys[is_member.int().argmax(0), 0].to(queries.device)
    pooled = ~_reads(layout, readings, queries, a_key_of_each_group)
    own = slice(first, first + len(readings))
    return [PooledGroups(is_member.float().to(queries.device), own, pooled, _pairs(pairs, queries.device))]


def _reads(layout: TokenLayout, readings: Sequence[Pattern], queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Tell which queries read which keys, (queries, readings, keys) bool; a key represents its cell or group."""
    return torch.stack([reading.mask_mod(layout)(queries[:, None], keys[None, :]) for reading in readings], dim=1)


def _pairs(pairs: Sequence[tuple[int, int]], device: torch.device) -> Pairs:
    """Make two tensors of pairs, (pairs,) int64 both, of first and of second elements."""
    both = torch.tensor(pairs, dtype=torch.int64, device=device).view(-1, 2)
    return both[:, 0], both[:, 1]
