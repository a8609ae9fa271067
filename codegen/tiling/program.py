"""Tile programs: which query tiles a kernel has, and which key tiles each of them reads.

A query tile reads the regions of its group, each cut into boxes of one shape; of a pair first what both groups read,
then what either reads alone.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import sympy

from planner.codegen.tiling.boxes import with_side
from planner.codegen.tiling.group_means import MeanTiles
from planner.codegen.tiling.key_source import KeySource, ListedTiles, listed_tiles
from planner.codegen.tiling.key_tiles import KeyTiles, key_box
from planner.codegen.tiling.query_tiles import QueryTiles, query_tiles
from planner.codegen.tiling.regions import Region, Span, global_regions, regions, shared_by_pair, whole
from planner.codegen.tiling.sympy_source import quotient
from planner.patterns.arithmetic import SYMBOLS
from planner.patterns.base import Pattern
from planner.patterns.dense import Dense
from planner.patterns.layout import TokenLayout


@dataclass(frozen=True)
class TileProgram:
    """All that a kernel does: which query tiles there are, and which key tiles each of them reads.

    coords: symbols of a query tile's group coordinates, of its pair's where there are pairs. keys: what such a tile
    reads, in order; of a pair first what both groups read, then what the first reads alone, then what the second
    does, which is as much. exclusive: what each of the two reads alone. means: what a tile reads after that, of the
    groups that it does not read. boxes: how many of ``keys`` and of ``everything`` make a key tile. Two of them
    (pairs) do as far as possible: a box that is left of what both groups read counts as one that each reads alone,
    and where each has one left these two are a tile. global_runs: (first token, tokens) of the runs whose queries
    read ``everything``.
    """

    coords: tuple[sympy.Symbol, ...]
    queries: QueryTiles
    keys: tuple[KeyTiles, ...]
    global_runs: tuple[tuple[int, int], ...]
    everything: KeyTiles
    block_m: int
    block_n: int
    means: MeanTiles | None = None
    exclusive: tuple[tuple[KeyTiles, ...], ...] = ((), ())
    boxes: int = 1

    @cached_property
    def tiles_read(self) -> sympy.Expr:
        """Key tiles that a query tile reads, in its group's coordinates."""
        if self.boxes == 1:
            return sympy.Add(*(tiles.count for tiles in self.keys), self.mean_tiles)
        return quotient(self.shared_boxes + 1, 2) + _counted(self.exclusive[0]) + self.mean_tiles

    @cached_property
    def shared_boxes(self) -> sympy.Expr:
        """Boxes of tokens that both groups of a pair read, or the one group of a query tile."""
        return _counted(self.keys[: len(self.keys) - sum(map(len, self.exclusive))])

    @property
    def iterations(self) -> int:
        """Key tiles that a row block of global queries reads; of the last one's boxes one may lie beyond all tokens."""
        return -(-int(self.everything.count) // self.boxes)

    @property
    def mean_tiles(self) -> int:
        """How many of them hold means; they are the last."""
        return self.means.count if self.means else 0

    @property
    def average_tiles_read(self) -> float:
        """Key tiles that a row of a query tile reads on average over the groups of the grid."""
        exclusive = sum(tiles.mean_count for tiles in self.exclusive[0])
        return (sum(tiles.mean_count for tiles in self.keys) - exclusive) / self.boxes + self.mean_tiles

    @cached_property
    def pairs_share_evenly(self) -> bool:
        """Whether the groups of every pair have a tile of keys in common, and read equally many boxes alone."""
        counts = (self.shared_boxes, *map(_counted, self.exclusive))
        at = sympy.lambdify(self.coords, counts, [{"Quotient": operator.floordiv}, "math"])
        pairs = self.keys[0].groups or (1,) * len(self.coords)
        found = (at(*coords) for coords in itertools.product(*map(range, pairs)))
        return all(shared >= self.boxes and one == other for shared, one, other in found)

    @property
    def sources(self) -> tuple[KeySource, ...]:
        """Where a query tile's keys come from, in the order in which it reads them."""
        return (*self.keys, *([self.means] if self.means is not None else []))

    @property
    def listed(self) -> ListedTiles | None:
        """The key groups that lists made at run time name; None where there are no such lists."""
        return next((tiles for tiles in self.keys if isinstance(tiles, ListedTiles)), None)

    @property
    def row_blocks(self) -> tuple[int, ...]:
        """Query tiles of each run of global tokens."""
        return tuple(-(-size // self.block_m) for _, size in self.global_runs)


def tile_programs(
    layout: TokenLayout,
    patterns: Sequence[Pattern],
    keys: int,
    block_m: int,
    block_n: int,
    num_sms: int,
    paired: bool = False,
) -> tuple[TileProgram, ...]:
    """Cut a site into tiles of ``block_m`` queries and ``block_n`` keys, both powers of two, for each of some patterns.

    The query tiles of all patterns are the same boxes. keys: length of the key sequence; other than the layout's only
    where there is nothing but dense attention. num_sms: SMs of the target, which decide the order of tiles. paired:
    whether a query tile holds a pair of groups (see ``pair_axis``), and a key tile two boxes.
    """
    queries = query_tiles(layout, patterns, block_m, num_sms, paired)
    if all(isinstance(pattern, Dense) for pattern in patterns):
        every = KeyTiles(Region(0, (Span(keys, 1, 0, keys, None),)), (block_n,))
        return tuple(TileProgram((), tiles, (every,), (), every, block_m, block_n) for tiles in queries)
    return tuple(
        _tile_program(layout, pattern, tiles, block_m, block_n, paired)
        for pattern, tiles in zip(patterns, queries, strict=True)
    )


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
    is_listed = pattern.list_length(groups) > 0
    read = global_regions(layout) if is_listed else regions(layout, pattern, coords, SYMBOLS)
    kinds: tuple[Sequence[Region], ...] = (read, (), ())
    if paired:
        axis = queries.pair_axis
        assert axis is not None
        groups = with_side(groups, axis, groups[axis] // 2)
        kinds = shared_by_pair(kinds[0], axis, coords[axis], groups[axis])
    every_region = list(itertools.chain(*kinds))
    views = {region.view[1] for region in every_region}
    alike = {axes: [region for region in every_region if region.view[1] == axes] for axes in views}
    cuts = {axes: key_box(members, groups, block_n // boxes) for axes, members in alike.items()}
    cut = [[KeyTiles(region, cuts[region.view[1]], groups) for region in kind] for kind in kinds]
    shared, exclusive, others = (
        tuple(tiles for tiles in kind if tiles.mean_count) for kind in cut
    )  # some are always empty
    shared += (listed_tiles(layout, pattern, block_n // boxes),) * is_listed
    means = MeanTiles(pattern, pattern.grid(sizes).counts, block_n) if pattern.pooled else None
    keys = (*shared, *exclusive, *others)
    return TileProgram(coords, queries, keys, runs, every, block_m, block_n, means, (exclusive, others), boxes)


def _counted(kind: Sequence[KeyTiles]) -> sympy.Expr:
    """Boxes of some regions in all."""
    return sympy.Add(*(tiles.count for tiles in kind))
