"""Key sources: where the keys of a query tile come from, behind one interface.

Three kinds stand behind it. A closed form names regions of tokens (``KeyTiles``), group means are rows of a tensor of
their own (``MeanTiles``), and a list made at run time names key groups (``ListedTiles``): emitted source then looks up
its numbers where it would otherwise compute them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import sympy

from planner.codegen.tiling.boxes import View, mixed_radix
from planner.codegen.tiling.key_tiles import KeyTiles, key_box
from planner.codegen.tiling.regions import own_region
from planner.codegen.tiling.sympy_source import quotient, source_of
from planner.patterns.arithmetic import SYMBOLS
from planner.patterns.base import Pattern
from planner.patterns.layout import TokenLayout

LISTS = "key_lists"
"""The argument that holds all lists: int32 (batch, heads, query groups, 1 + longest), contiguous.

A list is how many key groups are read, at least 1, then the number of each in raster order of the grid's groups.
"""

LIST = "key_list"
"""Name in emitted source of the list that a query tile reads: a pointer to its first number."""

LISTED = sympy.Symbol("listed", integer=True, nonnegative=True)
"""How many key groups that list names."""


class KeySource(Protocol):
    """Tiles of keys that a query tile reads one after the other."""

    @property
    def view(self) -> View:
        """What the rows of keys lie in."""
        ...

    @property
    def count(self) -> sympy.Expr | int:
        """How many tiles: an expression in the coordinates of the query's group, or in what a list says."""
        ...

    @property
    def mean_count(self) -> float:
        """The same on average over the query groups."""
        ...

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the kernel's arguments that it reads besides keys and values."""
        ...

    def starts(self, i: sympy.Expr) -> tuple[sympy.Expr, ...]:
        """Return the coordinates in the view of the first row of the i-th tile."""
        ...


@dataclass(frozen=True)
class ListedTiles(KeyTiles):
    """The key groups that a list made at run time names, each cut into boxes of one shape, alike for all groups.

    region: of one such group, in its coordinates ``l0``, ``l1``, …. groups: along each axis of the grid. longest: most
    groups that a list names. A group that the grid's end cuts short may have boxes without tokens.
    """

    longest: int = 1

    @cached_property
    def counts(self) -> tuple[sympy.Expr, ...]:
        """Boxes along each axis of a group."""
        along = zip(self._lengths, self.box, strict=True)
        return tuple(sympy.Integer(max(-(-length // box) for length in lengths)) for lengths, box in along)

    @cached_property
    def boxes_per_group(self) -> int:
        """Boxes of a group."""
        return int(sympy.Mul(*self.counts))

    @cached_property
    def count(self) -> sympy.Expr:
        """Boxes in all."""
        return LISTED * self.boxes_per_group

    @property
    def mean_count(self) -> float:
        """Boxes of the longest list: what lists hold is not known before they are made."""
        return float(self.longest * self.boxes_per_group)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The lists."""
        return (LISTS,)

    @property
    def may_lie_beyond(self) -> bool:
        """Whether a whole box may lie beyond its group."""
        along = zip(self._lengths, self.box, strict=True)
        return any(len({-(-length // box) for length in lengths}) > 1 for lengths, box in along)

    @cached_property
    def ragged(self) -> tuple[bool, ...]:
        """Along which axes a box may hold tokens outside its group."""
        along = zip(self._lengths, self.box, self.counts, strict=True)
        return tuple(any(length != count * box for length in lengths) for lengths, box, count in along)

    def starts(self, i: sympy.Expr) -> tuple[sympy.Expr, ...]:
        """Return the coordinates of the i-th box's first token, in the coordinates of the group that it is of."""
        return super().starts(sympy.Mod(i, self.boxes_per_group) if self.boxes_per_group > 1 else sympy.Integer(0))

    def bound(self, load: Callable[[str], str]) -> Iterator[str]:
        """Yield lines that assign ``listed``; load: from a pointer, as source, to what reads it."""
        yield f"{LISTED} = {load(LIST)}"

    def lookup(self, i: sympy.Symbol, load: Callable[[str], str]) -> Iterator[str]:
        """Yield lines that assign the coordinates of the group whose box the i-th is."""
        yield f"group = {load(f'{LIST} + 1 + {source_of(quotient(i, self.boxes_per_group))}')}"
        digits = mixed_radix(sympy.Symbol("group", integer=True, nonnegative=True), self.groups)
        yield from (f"{name} = {source_of(digit)}" for name, digit in zip(self._names, digits, strict=True))

    @property
    def _names(self) -> list[str]:
        return [str(name) for name in coordinates(len(self.groups))]


def coordinates(axes: int) -> tuple[sympy.Symbol, ...]:
    """Return the symbols of a listed group's coordinates."""
    return tuple(sympy.Symbol(f"l{axis}", integer=True, nonnegative=True) for axis in range(axes))


def listed_tiles(layout: TokenLayout, pattern: Pattern, tokens: int) -> ListedTiles:
    """Return the tiles of so many tokens of a pattern whose key groups are listed at run time."""
    groups = pattern.grid(layout.grid.sizes).counts
    region = own_region(layout, pattern, coordinates(len(groups)), SYMBOLS)
    return ListedTiles(region, key_box([region], groups, tokens), groups, pattern.list_length(groups))


def list_of(coords: Sequence[sympy.Symbol], tiles: ListedTiles) -> str:
    """Return the distance of the list of the group at coords from its head's first list, as source."""
    number = sympy.Integer(0)
    for coord, count in zip(coords, tiles.groups, strict=True):
        number = number * count + coord
    return source_of(number * (1 + tiles.longest))
