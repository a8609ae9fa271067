"""Tiles: the boxes of tokens that a kernel handles at once, in closed form.

A query tile is a box of one group's tokens, or of two groups' that lie side by side: a pair. It reads the regions of
its group, each cut into boxes of one shape; of a pair first what both groups read, then what either reads alone. A box
is a power of two along every axis, so that a column of a tile finds its token by shifts, and so that the copy engine of
SM90 and later can fetch it from where the model has it. Only the last box along an axis can hold tokens outside its
region: it is the only one whose columns are masked.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

import sympy

from planner.codegen.tiling.regions import Region, Span, global_regions, regions, shared_by_pair, whole
from planner.codegen.tiling.sympy_source import quotient
from planner.codegen.tiling.tile_order import patch
from planner.errors import times
from planner.patterns.arithmetic import SYMBOLS
from planner.patterns.axis_set import Range
from planner.patterns.base import Pattern
from planner.patterns.dense import Dense
from planner.patterns.layout import TokenLayout

SHARE = 64
"""Queries of a tile that each consumer warpgroup has: the rows of a ``wgmma``."""

Axes = tuple[tuple[int, int], ...]
"""(size, stride) in tokens along each axis of a view, slow to fast."""


@dataclass(frozen=True)
class View:
    """Tokens of the sequence seen as a box: the first one's index, and each axis."""

    origin: int
    axes: Axes


@dataclass(frozen=True)
class KeyTiles:
    """A region cut into boxes; the i-th has the digits of i in mixed radix, the last axis fastest."""

    region: Region
    box: tuple[int, ...]
    groups: tuple[int, ...] = ()
    """Groups along each axis of the grid: the values that coordinates take."""

    @property
    def view(self) -> View:
        """What the region lies in."""
        return View(*self.region.view)

    @cached_property
    def counts(self) -> tuple[sympy.Expr, ...]:
        """Boxes along each axis."""
        counts = list[sympy.Expr]()
        for span, lengths, box in zip(self.region.spans, self._lengths, self.box, strict=True):
            taken = {-(-length // box) for length in lengths}
            exact = all(length % box == 0 for length in lengths)
            length = sympy.sympify(span.stop - span.start)
            counts.append(sympy.Integer(taken.pop()) if len(taken) == 1 else _boxes(length, box, exact))
        return tuple(counts)

    @cached_property
    def _divisors(self) -> tuple[sympy.Expr, ...]:
        """Boxes along each axis, 1 where there are none: to divide by them must be possible."""
        along = zip(self.counts, self._lengths, strict=True)
        return tuple(count if min(lengths) else sympy.Max(1, count) for count, lengths in along)

    @cached_property
    def count(self) -> sympy.Expr:
        """Boxes in all."""
        return sympy.Mul(*self.counts)

    @property
    def mean_count(self) -> float:
        """Boxes on average over the groups; the axes are independent."""
        along = zip(self._lengths, self.box, strict=True)
        return math.prod(sum(-(-length // box) for length in lengths) / len(lengths) for lengths, box in along)

    def starts(self, i: sympy.Expr) -> tuple[sympy.Expr, ...]:
        """Coordinates of the i-th box's first token."""
        starts, stride = list[sympy.Expr](), sympy.Integer(1)
        for axis in reversed(range(len(self.box))):
            digit, count = quotient(i, stride), self._divisors[axis]
            if axis:
                digit = sympy.Mod(digit, count) if count != 1 else sympy.Integer(0)
            starts.append(self.region.spans[axis].start + digit * self.box[axis])
            stride = stride * count
        return tuple(reversed(starts))

    @cached_property
    def ragged(self) -> tuple[bool, ...]:
        """Along which axes the last box may hold tokens outside the region."""
        return tuple(
            any(length % box for length in lengths) for lengths, box in zip(self._lengths, self.box, strict=True)
        )

    @cached_property
    def _lengths(self) -> list[list[int]]:
        """The lengths that each axis of the region takes, over all groups."""
        return [span_lengths(span, self.groups) for span in self.region.spans]


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

    def digits(self, number: sympy.Expr) -> tuple[sympy.Expr, ...]:
        """Coordinates of a group from its number."""
        return mixed_radix(number, self.groups)

    def read(self, coords: Sequence[sympy.Expr]) -> list[list[tuple[Range, ...]]]:
        """The groups that the group at coords reads one by one: boxes, of each axis the ranges (first, stop)."""
        return [
            [along.ranges(c, count, SYMBOLS) for along, c, count in zip(box, coords, self.groups, strict=True)]
            for box in self.pattern.boxes()
        ]


def mixed_radix(number: sympy.Expr, counts: Sequence[Any]) -> tuple[sympy.Expr, ...]:
    """The digits of a number below the product of the counts, the last fastest."""
    digits = list[sympy.Expr]()
    for axis, count in enumerate(counts):
        digit = quotient(number, math.prod(counts[axis + 1 :]))
        digits.append(sympy.Integer(0) if count == 1 else sympy.Mod(digit, count) if axis else digit)
    return tuple(digits)


def kind_of_groups(pattern: Pattern) -> str:
    """The groups of a pattern as a name: ``16x16``, ``8x8_4x4`` with an offset."""
    return "_".join(times(sizes) for sizes in (pattern.group, pattern.offset) if sizes)


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
    walked_for: Pattern | None = None
    """The pattern whose reading decides the order of the tiles; rows of the view without one."""

    @cached_property
    def share(self) -> tuple[int, ...]:
        """The box of queries that each warpgroup has of a tile; the groups of a pair have one each.

        Of all boxes the one with fewest that hold a query at all, then the longest along the fast axes.
        """
        if self.pair_axis is not None:
            return _along(self.box, self.pair_axis, self.box[self.pair_axis] // 2)
        return min(
            self._shares(), key=lambda share: (self._shares_used(share), tuple(-side for side in reversed(share)))
        )

    @property
    def shares(self) -> tuple[int, ...]:
        """How many warpgroups lie side by side along each axis of a box, in raster order."""
        return tuple(b // s for b, s in zip(self.box, self.share, strict=True))

    def _shares(self) -> Iterator[tuple[int, ...]]:
        boxes = _power_boxes(len(self.box), SHARE)
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
        """Coordinates of the i-th tile's first token."""
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
        """The view, and for boxes that begin before it along some axes (named first) a view that ends where they do."""
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
        """Coordinates of the i-th tile's group."""
        return tuple(
            quotient(digit, -(-g // b)) for digit, b, g in zip(self._digits(i), self.box, self.group, strict=True)
        )

    def stops(self, coords: Sequence[sympy.Expr]) -> tuple[sympy.Expr, ...]:
        """Where the group at coords ends, as coordinates of tokens."""
        return tuple(
            sympy.Integer(n)
            if g - front_pad >= n
            else (c + 1) * g - front_pad
            if (n + front_pad) % g == 0
            else sympy.Min((c + 1) * g - front_pad, n)
            for c, (n, _), g, front_pad in zip(coords, self.view.axes, self.group, self.front_pad, strict=True)
        )

    @cached_property
    def patch(self) -> tuple[int, ...]:
        """Sides in tiles of the patches in which the grid is walked, raster order of patches and within them.

        The last patches along the first axis may be shorter (see planner.codegen.tiling.tile_order).
        """
        if self.walked_for is None:
            return self.counts
        sizes, pattern = [size for size, _ in self.view.axes], self.walked_for
        along = zip(self.box, pattern.group, strict=True)
        wide = tuple(Fraction(b // g) if b > g else Fraction(1, -(-g // b)) for b, g in along)
        return patch(pattern, pattern.grid(sizes).counts, self.counts, wide)

    def _digits(self, i: sympy.Expr) -> tuple[sympy.Expr, ...]:
        """The tile's place along each axis, counted from where the first group would begin if it lacked nothing."""
        (count, *counts), (side, *sides) = self.counts, self.patch
        strip = quotient(i, side * math.prod(counts)) if side < count else sympy.Integer(0)
        left = sympy.Mod(i, side * math.prod(counts)) if side < count else i
        height = side if count % side == 0 else sympy.Min(side, count - side * strip)
        patches, tiles = [n // s for n, s in zip(counts, sides, strict=True)], height * math.prod(sides)
        of_patch = (strip, *mixed_radix(quotient(left, tiles), patches))
        in_patch = mixed_radix(left if math.prod(patches) == 1 else sympy.Mod(left, tiles), (height, *sides))
        skipped = map(_boxes_skipped, self.box, self.group, self.front_pad)
        along = zip(of_patch, self.patch, in_patch, skipped, strict=True)
        return tuple(number * side + digit + first for number, side, digit, first in along)


@dataclass(frozen=True)
class TileProgram:
    """All that a kernel does: which query tiles there are, and which key tiles each of them reads.

    coords: symbols of a query tile's group coordinates, of its pair's where there are pairs. keys: what such a tile
    reads, in order; of a pair first what both groups read, then what the first reads alone, then what the second does,
    which is as much. lone: what each of the two reads alone. means: what a tile reads after that, of the groups that it
    does not read. boxes: how many of ``keys`` and of ``everything`` make a key tile. Two of them (pairs) do as far as
    possible: a box that is left of what both groups read counts as one that each reads alone, and where each has one
    left these two are a tile.
    global_runs: (first token, tokens) of the runs whose queries read ``everything``.
    """

    coords: tuple[sympy.Symbol, ...]
    queries: QueryTiles
    keys: tuple[KeyTiles, ...]
    global_runs: tuple[tuple[int, int], ...]
    everything: KeyTiles
    block_m: int
    block_n: int
    means: MeanTiles | None = None
    lone: tuple[tuple[KeyTiles, ...], ...] = ((), ())
    boxes: int = 1

    @cached_property
    def tiles_read(self) -> sympy.Expr:
        """Key tiles that a query tile reads, in its group's coordinates."""
        if self.boxes == 1:
            return sympy.Add(*(tiles.count for tiles in self.keys), self.mean_tiles)
        return quotient(self.shared_boxes + 1, 2) + _counted(self.lone[0]) + self.mean_tiles

    @cached_property
    def shared_boxes(self) -> sympy.Expr:
        """Boxes of tokens that both groups of a pair read, or the one group of a query tile."""
        return _counted(self.keys[: len(self.keys) - sum(map(len, self.lone))])

    @property
    def units(self) -> int:
        """Key tiles that global queries read; of the last one's boxes one may lie beyond all tokens."""
        return -(-int(self.everything.count) // self.boxes)

    @property
    def mean_tiles(self) -> int:
        """How many of them hold means; they are the last."""
        return self.means.count if self.means else 0

    @property
    def average_tiles_read(self) -> float:
        """Key tiles that a row of a query tile reads on average over the groups of the grid."""
        lone = sum(tiles.mean_count for tiles in self.lone[0])
        return (sum(tiles.mean_count for tiles in self.keys) - lone) / self.boxes + self.mean_tiles

    @cached_property
    def pairs_share_evenly(self) -> bool:
        """Whether the groups of every pair have a tile of keys in common, and read equally many boxes alone."""
        counts = (self.shared_boxes, *map(_counted, self.lone))
        at = sympy.lambdify(self.coords, counts, [{"Quotient": operator.floordiv}, "math"])
        pairs = self.keys[0].groups or (1,) * len(self.coords)
        found = (at(*coords) for coords in itertools.product(*map(range, pairs)))
        return all(shared >= self.boxes and one == other for shared, one, other in found)

    @property
    def row_blocks(self) -> tuple[int, ...]:
        """Query tiles of each run of global tokens."""
        return tuple(-(-size // self.block_m) for _, size in self.global_runs)


def tile_programs(
    layout: TokenLayout, patterns: Sequence[Pattern], keys: int, block_m: int, block_n: int, paired: bool = False
) -> tuple[TileProgram, ...]:
    """Cut a site into tiles of ``block_m`` queries and ``block_n`` keys, both powers of two, for each of some patterns.

    The query tiles of all patterns are the same boxes. keys: length of the key sequence; other than the layout's only
    where there is nothing but dense attention. paired: whether a query tile holds a pair of groups (see ``pair_axis``),
    and a key tile two boxes.
    """
    queries = query_tiles(layout, patterns, block_m, paired)
    if all(isinstance(pattern, Dense) for pattern in patterns):
        every = KeyTiles(Region(0, (Span(keys, 1, 0, keys, None),)), (block_n,))
        return tuple(TileProgram((), tiles, (every,), (), every, block_m, block_n) for tiles in queries)
    return tuple(
        _tile_program(layout, pattern, tiles, block_m, block_n, paired)
        for pattern, tiles in zip(patterns, queries, strict=True)
    )


def pair_axis(layout: TokenLayout, pattern: Pattern, block_m: int) -> int | None:
    """The axis along which two groups make a query tile, one half each; None where they cannot.

    Such groups hold half a tile, their sides are powers of two, and there is an even number of them along the axis, if
    possible all whole. Of several axes the slowest.
    """
    sides = pattern.group
    if math.prod(sides) * 2 != block_m or any(side & (side - 1) for side in sides) or any(pattern.front_pad):
        return None
    return next(iter(pattern.grid(layout.grid.sizes).even_axes), None)


def _along(sizes: Sequence[int], axis: int, size: int) -> tuple[int, ...]:
    """Sizes with another one along an axis."""
    return (*sizes[:axis], size, *sizes[axis + 1 :])


def query_tiles(
    layout: TokenLayout, patterns: Sequence[Pattern], block_m: int, paired: bool = False
) -> tuple[QueryTiles, ...]:
    """The query tiles of some patterns, all of which are the same boxes; paired: each holds a pair of groups."""
    grouped = [pattern for pattern in patterns if not isinstance(pattern, Dense)]
    if not grouped:
        return (QueryTiles(View(0, ((layout.tokens, 1),)), (block_m,), (block_m,), (0,)),) * len(patterns)
    sizes, front_pad = layout.grid.sizes, grouped[0].front_pad
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    view = View(layout.grid_start, tuple(zip(sizes, strides, strict=True)))
    if paired:
        axis = pair_axis(layout, grouped[0], block_m)
        assert axis is not None
        pair = _along(grouped[0].group, axis, 2 * grouped[0].group[axis])
        return (QueryTiles(view, pair, pair, front_pad, axis, grouped[0]),) * len(patterns)
    box = _query_box(sizes, list(dict.fromkeys(pattern.group for pattern in grouped)), front_pad, block_m)
    groups = [(grouped[0] if isinstance(pattern, Dense) else pattern).group for pattern in patterns]
    return tuple(QueryTiles(view, box, group, front_pad, walked_for=grouped[0]) for group in groups)


@lru_cache(maxsize=1024)
def _tile_program(
    layout: TokenLayout, pattern: Pattern, queries: QueryTiles, block_m: int, block_n: int, paired: bool
) -> TileProgram:
    boxes, sizes = 1 + paired, layout.grid.sizes
    every = KeyTiles(whole(layout), (block_n // boxes,))
    runs = tuple((span.start, span.stop - span.start) for region in global_regions(layout) for span in region.spans)
    coords = tuple(sympy.Symbol(f"c{axis}", integer=True, nonnegative=True) for axis in range(len(sizes)))
    if isinstance(pattern, Dense):
        return TileProgram(coords, queries, (every,), runs, every, block_m, block_n, boxes=boxes)
    groups = pattern.grid(sizes).verify().counts
    kinds: tuple[Sequence[Region], ...] = (regions(layout, pattern, coords, SYMBOLS), (), ())
    if paired:
        axis = queries.pair_axis
        assert axis is not None
        groups = _along(groups, axis, groups[axis] // 2)
        kinds = shared_by_pair(kinds[0], axis, coords[axis], groups[axis])
    read = list(itertools.chain(*kinds))
    alike = {
        axes: [region for region in read if region.view[1] == axes] for axes in {region.view[1] for region in read}
    }
    cuts = {axes: _key_box(members, groups, block_n // boxes) for axes, members in alike.items()}
    cut = [[KeyTiles(region, cuts[region.view[1]], groups) for region in kind] for kind in kinds]
    both, lone, others = (tuple(tiles for tiles in kind if tiles.mean_count) for kind in cut)  # some are always empty
    means = MeanTiles(pattern, pattern.grid(sizes).counts, block_n) if pattern.pooled else None
    keys, alone = (*both, *lone, *others), (lone, others)
    return TileProgram(coords, queries, keys, runs, every, block_m, block_n, means, alone, boxes)


def _counted(kind: Sequence[KeyTiles]) -> sympy.Expr:
    """Boxes of some regions in all."""
    return sympy.Add(*(tiles.count for tiles in kind))


def span_lengths(span: Span, groups: Sequence[int]) -> list[int]:
    """The lengths that a span takes, over all groups along its axis."""
    length = sympy.sympify(span.stop - span.start)
    if not length.free_symbols:
        return [int(length)]
    (symbol,) = length.free_symbols
    assert span.axis is not None
    at = sympy.lambdify(symbol, length, "math")
    return [at(c) for c in range(groups[span.axis])]


def _tiles_along(n: int, b: int, g: int, front_pad: int) -> int:
    """Boxes of b tokens in groups of g along an axis of n tokens, of which the first lacks ``front_pad``."""
    if g % b == 0:
        return -(-(n + front_pad) // b) - _boxes_skipped(b, g, front_pad)
    return -(-(n + front_pad) // g) * -(-g // b)


def _boxes_skipped(b: int, g: int, front_pad: int) -> int:
    """Boxes of the first group that hold nothing but what it lacks."""
    return front_pad // b if g % b == 0 else 0


def _query_box(
    sizes: Sequence[int], groups: Sequence[Sequence[int]], front_pad: Sequence[int], tokens: int
) -> tuple[int, ...]:
    """The box with fewest tiles; of those one that no group's border cuts, then the longest along the fast axes."""

    def badness(box: tuple[int, ...]) -> tuple[Any, ...]:
        tiles = sum(math.prod(map(_tiles_along, sizes, box, group, front_pad)) for group in groups)
        cut = any(g % b for group in groups for g, b in zip(group, box, strict=True))
        return tiles, cut, tuple(-b for b in reversed(box))

    return min(_power_boxes(len(sizes), tokens), key=badness)


def _key_box(alike: Sequence[Region], groups: Sequence[int], tokens: int) -> tuple[int, ...]:
    """The box that covers regions of one view with fewest tiles, over groups all over the grid."""
    lengths = [[span_lengths(span, groups) for span in region.spans] for region in alike]

    def badness(box: tuple[int, ...]) -> tuple[Any, ...]:
        # The axes of a region are independent: the mean of the product is the product of means.
        means = [
            [sum(-(-n // b) for n in along) / len(along) for along, b in zip(axes, box, strict=True)]
            for axes in lengths
        ]
        ragged = sum(any(n % b for n in along) for axes in lengths for along, b in zip(axes, box, strict=True))
        return sum(map(math.prod, means)), ragged, tuple(-b for b in reversed(box))

    return min(_power_boxes(len(alike[0].spans), tokens), key=badness)


def _power_boxes(axes: int, tokens: int) -> Iterator[tuple[int, ...]]:
    """All boxes of so many tokens whose sides are powers of two."""
    powers = [2**k for k in range(tokens.bit_length())]
    for sides in itertools.product(powers, repeat=axes - 1):
        last = tokens // math.prod(sides)
        if last and last * math.prod(sides) == tokens:
            yield (*sides, last)


def _boxes(length: sympy.Expr, box: int, exact: bool) -> sympy.Expr:
    return quotient(length if exact else length + box - 1, box)
