"""The index map of a pattern: which key groups a query group reads, and where they are stored, as sympy expressions.

Nothing is tabulated: the i-th key group and its first position are piecewise expressions in (group coordinates, i),
which a kernel evaluates in registers. The axis sets that give these symbols also give
the numbers of planner.patterns.key_groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import sympy

from planner.codegen.tiling.sympy_source import source_of
from planner.patterns.arithmetic import SYMBOLS
from planner.patterns.axis_set import AxisSet
from planner.patterns.base import Box, Pattern
from planner.patterns.groups import GroupGrid, extent_along, group_start
from planner.shapes import times


@dataclass(frozen=True)
class IndexMap:
    """The closed form of ``planner.patterns.key_groups.key_groups`` for all query groups of a grid at once."""

    pattern: Pattern
    grid: GroupGrid

    @cached_property
    def coords(self) -> tuple[sympy.Symbol, ...]:
        """Symbols of the query group's coordinates, slow to fast."""
        return tuple(sympy.Symbol(f"c{axis}", integer=True, nonnegative=True) for axis in range(len(self.grid.sizes)))

    @cached_property
    def index(self) -> sympy.Symbol:
        """The symbol i, which counts the key groups of a query group from 0."""
        return sympy.Symbol("i", integer=True, nonnegative=True)

    @cached_property
    def count(self) -> sympy.Expr:
        """How many key groups the query group reads."""
        return sympy.Add(*(self._box_count(box) for box in self.pattern.boxes()))

    @cached_property
    def key(self) -> tuple[sympy.Expr, ...]:
        """Coordinates of the i-th key group."""
        branches = list[tuple[tuple[sympy.Expr, ...], sympy.Basic]]()
        first: sympy.Expr = sympy.Integer(0)
        *boxes, last = (box for box in self.pattern.boxes() if self._box_count(box) != 0)
        for box in boxes:
            end = first + self._box_count(box)
            branches.append((self._box_item(box, self.index - first), sympy.Lt(self.index, end)))
            first = end
        branches.append((self._box_item(last, self.index - first), sympy.true))
        return tuple(
            sympy.Piecewise(*((item[axis], condition) for item, condition in branches))
            for axis in range(len(self.coords))
        )

    @cached_property
    def start(self) -> sympy.Expr:
        """Position in group order of the i-th key group's first token."""
        return self._start_at(self.key)

    @cached_property
    def size(self) -> sympy.Expr:
        """Tokens of the i-th key group."""
        return self._size_at(self.key)

    def source(self) -> str:
        """Return the map as Python source: ``key_count(c0, …)`` and ``key_group(c0, …, i) -> (start, size)``."""
        names = ", ".join(map(str, self.coords))
        keys = [sympy.Symbol(f"k{axis}", integer=True) for axis in range(len(self.coords))]
        body = [f"{name} = {source_of(expr)}" for name, expr in zip(keys, self.key, strict=True)]
        body += [f"start = {source_of(self._start_at(keys))}", f"size = {source_of(self._size_at(keys))}"]
        return "\n".join(
            [
                f"# {self.pattern} on {times(self.grid.sizes)}",
                f"def key_count({names}):",
                f"    return {source_of(self.count)}",
                "",
                "",
                f"def key_group({names}, i):",
                *(f"    {line}" for line in body),
                "    return start, size",
                "",
            ]
        )

    def _start_at(self, key: Sequence[sympy.Expr]) -> sympy.Expr:
        return sympy.sympify(group_start(key, self.grid.group, self.grid.sizes, SYMBOLS, self.grid.front_pad))

    def _size_at(self, key: Sequence[sympy.Expr]) -> sympy.Expr:
        along = zip(key, self.grid.group, self.grid.sizes, self.grid.front_pad, strict=True)
        return sympy.Mul(*(extent_along(c, g, n, SYMBOLS, front_pad) for c, g, n, front_pad in along))

    def _along(self, box: Box) -> Iterator[tuple[AxisSet, sympy.Symbol, int]]:
        return zip(box, self.coords, self.grid.counts, strict=True)

    def _box_count(self, box: Box) -> sympy.Expr:
        return sympy.Mul(*(along.count(c, G, SYMBOLS) for along, c, G in self._along(box)))

    def _box_item(self, box: Box, i: sympy.Expr) -> tuple[sympy.Expr, ...]:
        """Mixed-radix digits of i, the last axis fastest, each mapped to the axis set's item."""
        coords, stride = list[sympy.Expr](), sympy.Integer(1)
        for along, c, G in reversed(list(self._along(box))):
            count = sympy.sympify(along.count(c, G, SYMBOLS))
            digit = sympy.Mod(sympy.floor(i / stride), count) if count != 1 else sympy.Integer(0)
            coords.append(sympy.sympify(along.item(digit, c, G, SYMBOLS)))
            stride = stride * count
        return tuple(reversed(coords))
