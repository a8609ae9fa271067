"""The means of a grid's groups as keys: one row a group, cut into tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import sympy

from planner.codegen.tiling.boxes import View, mixed_radix
from planner.patterns.arithmetic import SYMBOLS
from planner.patterns.axis_set import Range
from planner.patterns.base import Pattern
from planner.shapes import times


@dataclass(frozen=True)
class MeanTiles:
    """The means of a grid's groups as keys: one row a group, in raster order of the groups, cut into tiles.

    groups: along each axis. A query tile reads all of them, and leaves out those whose tokens it reads one by one.
    """

    pattern: Pattern
    groups: tuple[int, ...]
    block: int

    @property
    def kind(self) -> str:
        """What the groups are called: alike for patterns whose groups are the same."""
        return kind_of_groups(self.pattern)

    @property
    def rows(self) -> int:
        """Groups in all."""
        return math.prod(self.groups)

    @property
    def count(self) -> int:
        """Tiles in all."""
        return -(-self.rows // self.block)

    @property
    def view(self) -> View:
        """What the rows lie in, in a tensor of their own."""
        return View(0, ((self.rows, 1),))

    @property
    def mean_count(self) -> float:
        """Tiles that a query tile reads: all of them."""
        return float(self.count)

    @property
    def arguments(self) -> tuple[str, ...]:
        """What each mean adds to its score: how often it counts, and which keys are masked."""
        return ("mean_bias",)

    def starts(self, i: sympy.Expr) -> tuple[sympy.Expr, ...]:
        """Return the first row of the i-th tile."""
        return (i * self.block,)

    def digits(self, number: sympy.Expr) -> tuple[sympy.Expr, ...]:
        """Return the coordinates of a group from its number."""
        return mixed_radix(number, self.groups)

    def read(self, coords: Sequence[sympy.Expr]) -> list[list[tuple[Range, ...]]]:
        """List the groups that the group at coords reads singly: boxes, of each axis the ranges (first, stop)."""
        return [
            [along.ranges(c, count, SYMBOLS) for along, c, count in zip(box, coords, self.groups, strict=True)]
            for box in self.pattern.boxes()
        ]


def kind_of_groups(pattern: Pattern) -> str:
    """Name the groups of a pattern: ``16x16``, ``8x8_4x4`` with an offset."""
    return "_".join(times(sizes) for sizes in (pattern.group, pattern.offset) if sizes)
