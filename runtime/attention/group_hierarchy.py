"""Group hierarchies: the groups by which tokens are ordered, and the grouped order that follows.

In grouped order the tokens of each group are contiguous: a grid's tokens are sorted by the coordinates of their groups,
of the coarsest ones first where several kinds nest, and stay in raster order within the finest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from planner.patterns.base import Pattern
from planner.patterns.groups import GroupGrid
from planner.patterns.spelling import parse_group
from planner.shapes import times

Run = tuple[int, int]
"""(start, stop) positions in grouped order."""

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class GroupHierarchy:
    """The (group, offset) of each level, the coarsest first; spelled ``16x16 8x8`` or ``8x8+4x4``."""

    levels: tuple[tuple[Sizes, Sizes], ...]

    @staticmethod
    def of(patterns: Iterable[Pattern]) -> GroupHierarchy:
        """Collect the groups of some patterns."""
        groups = dict.fromkeys((pattern.group, pattern.offset) for pattern in patterns)
        return GroupHierarchy(tuple(sorted(groups, key=lambda level: [-side for side in level[0]])))

    @staticmethod
    def parse(text: str) -> GroupHierarchy:
        """Read a spelling, so that ``parse(str(hierarchy)) == hierarchy``; raises BadSpelling."""
        levels = [level.partition("+") for level in text.split()]
        return GroupHierarchy(
            tuple(
                (parse_group(group), tuple(map(int, offset.split("x"))) if offset else ())
                for group, _, offset in levels
            )
        )

    def __str__(self) -> str:
        return " ".join(times(group) + (f"+{times(offset)}" if offset else "") for group, offset in self.levels)

    def token_order(self, sizes: Sequence[int]) -> torch.Tensor:
        """Return the raster index of the token at each position of a grid's grouped order, (tokens,) int64."""
        order = torch.arange(math.prod(sizes))
        for group, offset in reversed(self.levels):
            order = order[GroupGrid(tuple(sizes), group, offset).numbers()[order].argsort(stable=True)]
        return order


def group_runs(grid: GroupGrid, order: torch.Tensor) -> dict[tuple[int, ...], Run] | None:
    """Find the run of each group of a grid in an order of its tokens, by the group's coordinates.

    order: (tokens,) int64, the raster index of the token at each position. None if a group is not contiguous in it.
    """
    ids, lengths = torch.unique_consecutive(grid.numbers()[order], return_counts=True)
    if len(ids) != len(ids.unique()):
        return None
    stops = lengths.cumsum(0).tolist()
    runs = dict(zip(ids.tolist(), zip([0, *stops], stops, strict=False), strict=True))
    return {coordinates: runs[number] for number, coordinates in enumerate(grid.coords())}
