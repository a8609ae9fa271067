"""Query tiles: the grid cut into boxes, each of one group's tokens, or of two groups' that lie side by side: a pair."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import sympy

from planner.codegen.tiling.boxes import View, mixed_radix, power_boxes, with_side
from planner.codegen.tiling.sympy_source import quotient
from planner.codegen.tiling.tile_order import wave_sides
from planner.patterns.base import Pattern
from planner.patterns.dense import Dense
from planner.patterns.layout import TokenLayout

SHARE = 64
"""Queries of a tile that each consumer warpgroup has: the rows of a ``wgmma``."""


@dataclass(frozen=True)
class QueryTiles:
    """The queries of a view cut into boxes, none of which crosses from one group into another."""

    view: View
    box: tuple[int, ...]
    group: tuple[int, ...]
    """Tokens of a group along each axis of the view; the box where there are no groups."""
    front_pad: tuple[int, ...]
    """Tokens that the first group lacks along each axis; the first box may begin outside, by less than a box."""
    pair_axis: int | None = None
    """The axis along which the two groups of a pair lie side by side."""
    ordered_for: Pattern | None = None
    """The pattern whose reading decides the order of the tiles; rows of the view without one."""
    wave_size: int = 1
    """Tiles that are handled at once: one on each SM."""

    @cached_property
    def share(self) -> tuple[int, ...]:
        """The box of queries that each warpgroup has of a tile; the groups of a pair have one each.

        Of all boxes the one with fewest that hold a query at all, then the longest along the fast axes.
        """
        if self.pair_axis is not None:
            return with_side(self.box, self.pair_axis, self.box[self.pair_axis] // 2)
        return min(
            self._shares(), key=lambda share: (self._shares_used(share), tuple(-side for side in reversed(share)))
        )

    @property
    def shares(self) -> tuple[int, ...]:
        """How many warpgroups lie side by side along each axis of a box, in raster order."""
        return tuple(b // s for b, s in zip(self.box, self.share, strict=True))

    def _shares(self) -> Iterator[tuple[int, ...]]:
        boxes = power_boxes(len(self.box), SHARE)
        return (each for each in boxes if all(b % s == 0 for b, s in zip(self.box, each, strict=True)))

    def _shares_used(self, share: Sequence[int]) -> int:
        """Warpgroups that have a query, over all tiles."""
        along = zip(self._lengths, share, strict=True)
        return math.prod(sum(-(-length // side) for length in lengths) for lengths, side in along)

    @property
    def shares_empty(self) -> tuple[bool, ...]:
        """Along which axes a warpgroup may have no query of a tile."""
        along = zip(self._lengths, self.box, self.share, strict=True)
        return tuple(any(-(-length // s) < b // s for length in lengths) for lengths, b, s in along)

    @cached_property
    def _lengths(self) -> list[list[int]]:
        """Tokens of the view that the boxes along each axis hold, for boxes that divide the group."""
        found = list[list[int]]()
        for (n, _), b, g, front_pad in zip(self.view.axes, self.box, self.group, self.front_pad, strict=True):
            starts = range(_boxes_skipped(b, g, front_pad) * b - front_pad, n, b)
            found.append([min(start + b, n) - max(start, 0) for start in starts])
        return found

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Tiles along each axis."""
        return tuple(
            _tiles_along(n, b, g, front_pad)
            for (n, _), b, g, front_pad in zip(self.view.axes, self.box, self.group, self.front_pad, strict=True)
        )

    @property
    def count(self) -> int:
        """Tiles in all."""
        return math.prod(self.counts)

    @property
    def holds_whole_boxes(self) -> bool:
        """Whether a box can only pass its group's borders where the grid ends."""
        return all(g % b == 0 for g, b in zip(self.group, self.box, strict=True))

    def starts(self, i: sympy.Expr) -> tuple[sympy.Expr, ...]:
        """Return the coordinates of the i-th tile's first token."""
        starts = list[sympy.Expr]()
        for digit, b, g, front_pad in zip(self._digits(i), self.box, self.group, self.front_pad, strict=True):
            per_group = -(-g // b)
            inside = sympy.Mod(digit, per_group) if per_group != 1 else 0
            starts.append(
                digit * b - front_pad if g % b == 0 else quotient(digit, per_group) * g - front_pad + inside * b
            )
        return tuple(starts)

    @property
    def begins_before(self) -> tuple[bool, ...]:
        """Along which axes the first box begins before the view."""
        return tuple(
            front_pad % b > 0 if g % b == 0 else front_pad > 0
            for b, g, front_pad in zip(self.box, self.group, self.front_pad, strict=True)
        )

    @property
    def first_sides(self) -> tuple[int, ...]:
        """Tokens of the view in the first box along each axis where it begins before the view, 0 where it does not.

        For boxes that divide the group.
        """
        along = zip(self.box, self.front_pad, self.begins_before, strict=True)
        return tuple(b - front_pad % b if before else 0 for b, front_pad, before in along)

    def views(self) -> list[tuple[tuple[int, ...], View]]:
        """List the view, and for boxes that begin before it along some axes (named first) one that ends there."""
        axes = [
            [(False, axis), (True, (first, axis[1]))] if first else [(False, axis)]
            for first, axis in zip(self.first_sides, self.view.axes, strict=True)
        ]
        return [
            (
                tuple(number for number, (is_first, _) in enumerate(chosen) if is_first),
                View(self.view.origin, tuple(axis for _, axis in chosen)),
            )
            for chosen in itertools.product(*axes)
        ]

    @property
    def may_pass(self) -> tuple[bool, ...]:
        """Along which axes a box may hold tokens beyond its group or the view."""
        along = zip(self.view.axes, self.box, self.group, self.front_pad, strict=True)
        return tuple(bool((n + front_pad) % b or g % b) for (n, _), b, g, front_pad in along)

    def coords(self, i: sympy.Expr) -> tuple[sympy.Expr, ...]:
        """Return the coordinates of the i-th tile's group."""
        return tuple(
            quotient(digit, -(-g // b)) for digit, b, g in zip(self._digits(i), self.box, self.group, strict=True)
        )

    def stops(self, coords: Sequence[sympy.Expr]) -> tuple[sympy.Expr, ...]:
        """Return where the group at coords ends, as coordinates of tokens."""
        return tuple(
            sympy.Integer(n)
            if g - front_pad >= n
            else (c + 1) * g - front_pad
            if (n + front_pad) % g == 0
            else sympy.Min((c + 1) * g - front_pad, n)
            for c, (n, _), g, front_pad in zip(coords, self.view.axes, self.group, self.front_pad, strict=True)
        )

    @cached_property
    def wave(self) -> tuple[int, ...]:
        """Sides in tiles of the waves of the tile order, which is raster order of waves and within them.

        The last waves along the first axis may be shorter (see planner.codegen.tiling.tile_order).
        """
        if self.ordered_for is None:
            return self.counts
        sizes, pattern = [size for size, _ in self.view.axes], self.ordered_for
        along = zip(self.box, pattern.group, strict=True)
        wide = tuple(Fraction(b // g) if b > g else Fraction(1, -(-g // b)) for b, g in along)
        return wave_sides(pattern, pattern.grid(sizes).counts, self.counts, wide, self.wave_size)

    def _digits(self, i: sympy.Expr) -> tuple[sympy.Expr, ...]:
        """Return the tile's index along each axis, counted from where the first group begins with its padding."""
        (count, *counts), (side, *sides) = self.counts, self.wave
        strip = quotient(i, side * math.prod(counts)) if side < count else sympy.Integer(0)
        left = sympy.Mod(i, side * math.prod(counts)) if side < count else i
        height = side if count % side == 0 else sympy.Min(side, count - side * strip)
        waves, tiles = [n // s for n, s in zip(counts, sides, strict=True)], height * math.prod(sides)
        of_wave = (strip, *mixed_radix(quotient(left, tiles), waves))
        in_wave = mixed_radix(left if math.prod(waves) == 1 else sympy.Mod(left, tiles), (height, *sides))
        skipped = map(_boxes_skipped, self.box, self.group, self.front_pad)
        along = zip(of_wave, self.wave, in_wave, skipped, strict=True)
        return tuple(number * side + digit + first for number, side, digit, first in along)


def pair_axis(layout: TokenLayout, pattern: Pattern, block_m: int) -> int | None:
    """Find the axis along which two groups make a query tile, one half each; None where they cannot.

    Such groups hold half a tile, their sides are powers of two, and there is an even number of them along the axis, if
    possible all whole. Of several axes the slowest.
    """
    sides = pattern.group
    if math.prod(sides) * 2 != block_m or any(side & (side - 1) for side in sides) or any(pattern.front_pad):
        return None
    return next(iter(pattern.grid(layout.grid.sizes).even_axes), None)


def query_tiles(
    layout: TokenLayout, patterns: Sequence[Pattern], block_m: int, num_sms: int, paired: bool = False
) -> tuple[QueryTiles, ...]:
    """Return the query tiles of some patterns, all of which are the same boxes.

    num_sms: SMs of the target, which handle as many tiles at once. paired: whether a tile holds a pair of groups.
    """
    grouped = [pattern for pattern in patterns if not isinstance(pattern, Dense)]
    if not grouped:
        return (QueryTiles(View(0, ((layout.tokens, 1),)), (block_m,), (block_m,), (0,)),) * len(patterns)
    sizes, front_pad = layout.grid.sizes, grouped[0].front_pad
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    view = View(layout.grid_start, tuple(zip(sizes, strides, strict=True)))
    if paired:
        axis = pair_axis(layout, grouped[0], block_m)
        assert axis is not None
        pair = with_side(grouped[0].group, axis, 2 * grouped[0].group[axis])
        return (QueryTiles(view, pair, pair, front_pad, axis, grouped[0], num_sms),) * len(patterns)
    box = _query_box(sizes, list(dict.fromkeys(pattern.group for pattern in grouped)), front_pad, block_m)
    groups = [(grouped[0] if isinstance(pattern, Dense) else pattern).group for pattern in patterns]
    order: dict[str, Any] = {"ordered_for": grouped[0], "wave_size": num_sms}
    return tuple(QueryTiles(view, box, group, front_pad, **order) for group in groups)


def _tiles_along(n: int, b: int, g: int, front_pad: int) -> int:
    """Count boxes of b tokens in groups of g along an axis of n tokens; the first group lacks ``front_pad`` of them."""
    if g % b == 0:
        return -(-(n + front_pad) // b) - _boxes_skipped(b, g, front_pad)
    return -(-(n + front_pad) // g) * -(-g // b)


def _boxes_skipped(b: int, g: int, front_pad: int) -> int:
    """Count the boxes of the first group that hold only tokens it lacks."""
    return front_pad // b if g % b == 0 else 0


def _query_box(
    sizes: Sequence[int], groups: Sequence[Sequence[int]], front_pad: Sequence[int], tokens: int
) -> tuple[int, ...]:
    """Choose the box with fewest tiles; of those one that no group's border cuts, then the longest along fast axes."""

    def badness(box: tuple[int, ...]) -> tuple[Any, ...]:
        tiles = sum(math.prod(map(_tiles_along, sizes, box, group, front_pad)) for group in groups)
        cut = any(g % b for group in groups for g, b in zip(group, box, strict=True))
        return tiles, cut, tuple(-b for b in reversed(box))

    return min(power_boxes(len(sizes), tokens), key=badness)
