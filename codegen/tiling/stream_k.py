"""The Stream-K schedule: which SM handles which tiles, so that all of them finish together.

Query tiles of the grid are handed out while the kernel runs, each to the CTA that is free first. Queries of global
tokens read every key: few rows, but each as long as the sequence. Their work is divided before in *iterations*, one
key tile for each CTA of a *CTA group*, which reads the same keys for neighbouring row blocks, so that L2 is shared.
Every CTA group takes one run of iterations, which row blocks cut into *splits*: long enough that all SMs get equal
work, so that the rows fill what is uneven in the tiles; or, where that should end earlier, a whole row block or
nothing, so that no rows have to be fixed up from partials. No long row is left for the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from planner.codegen.tiling.program import TileProgram
from planner.errors import MalformedValue

TILE_ENDS = 0.7
"""What beginning and ending a query tile takes, in tiles of 128 queries and keys (H100; bench/EXPERIMENTS.md)."""

SPLIT_ENDS = 2
"""The same of a split of global queries: to begin it and to store its partial."""

FIX_UP = 3
"""The same of fixing up a row block from its partials, when all tiles are done."""


@dataclass(frozen=True)
class Schedule:
    """A persistent launch of ``num_sms`` CTAs.

    grid_tiles, row_blocks: query tiles of the grid, and of global tokens, over all heads and the batch. cta_group:
    CTAs that read the same keys together. iterations: key tiles of a row block. split_cost: what a split takes
    besides, in iterations. long_groups, long_iterations, group_iterations: the first ``long_groups`` CTA groups take
    ``long_iterations`` each, all others ``group_iterations``; where a group passes from one row block to the next the
    cost of a split counts as iterations.
    """

    num_sms: int
    grid_tiles: int
    row_blocks: int
    cta_group: int
    iterations: int
    split_cost: int
    long_groups: int
    long_iterations: int
    group_iterations: int

    @property
    def row_groups(self) -> int:
        """Groups of row blocks, one for each CTA of a CTA group."""
        return self.row_blocks // self.cta_group

    @cached_property
    def max_partials(self) -> int:
        """Partials of a row block at most: CTA groups that share its keys."""
        ends = range(self.iterations, self.row_groups * self.iterations + 1, self.iterations)
        return max((self.group_of(end - 1) - self.group_of(end - self.iterations) + 1 for end in ends), default=0)

    def group_of(self, iteration: int) -> int:
        """Return the CTA group that does an iteration."""
        place = iteration + iteration // self.iterations * self.split_cost
        border = self.long_groups * self.long_iterations
        if place < border:
            return place // self.long_iterations
        return self.long_groups + (place - border) // self.group_iterations

    def first_iteration(self, group: int) -> int:
        """Return the first iteration of a CTA group; that of the next one is where it ends."""
        long = min(group, self.long_groups)
        taken = long * self.long_iterations + (group - long) * self.group_iterations
        block, place = divmod(taken, self.iterations + self.split_cost)
        return min(block * self.iterations + min(place, self.iterations), self.row_groups * self.iterations)

    def finish_time(self, tile: float, scale: float) -> float:
        """Predict when the last CTA is done, in key tiles, if a tile of the grid takes ``tile`` of them.

        scale: key tiles that do the work of one of 128 queries and keys.
        """
        loads = Counter[float]()
        for group in range(self.num_sms // self.cta_group):
            first, last = self.first_iteration(group), self.first_iteration(group + 1)
            load = 0.0
            for block in range(first // self.iterations, -(-last // self.iterations)):
                iterations = min(last, (block + 1) * self.iterations) - max(first, block * self.iterations)
                load += iterations + (self.split_cost if iterations < self.iterations else TILE_ENDS * scale)
            loads[load] += self.cta_group
        low, high = max(loads), max(loads) + (self.grid_tiles // self.num_sms + 1) * tile
        while high - low > 0.1:
            middle = (low + high) / 2
            done = sum(count * int((middle - load) // tile) for load, count in loads.items())
            low, high = (low, middle) if done >= self.grid_tiles else (middle, high)
        return high + (self.max_partials > 1) * FIX_UP * scale

    def verify(self) -> Schedule:
        """Return the schedule; raises MalformedValue if an iteration is left over."""
        groups, iterations = self.num_sms // self.cta_group, self.row_groups * self.iterations
        if iterations and self.group_of(iterations - 1) >= groups:
            fault = f"its {groups} CTA groups do not take all of {iterations} iterations"
            raise MalformedValue(str(self), fault, "This is a mistake of the planner: please report it.")
        return self


def make_schedule(
    program: TileProgram, heads: int, num_sms: int, iterations: int, tiles_read: float | None = None
) -> Schedule:
    """Make the schedule of a program over so many (batch, head) pairs.

    iterations: key tiles that a row block of global queries reads. tiles_read: those that a tile of the grid reads on
    average, where it is not the program's.
    """
    grid_tiles, row_blocks = heads * program.queries.count, heads * sum(program.row_blocks)
    if not row_blocks:
        return Schedule(num_sms, grid_tiles, 0, 1, iterations, 0, 0, 1, 1)
    cta_group = next(t for t in (4, 2, 1) if sum(program.row_blocks) % t == 0 and num_sms % t == 0)
    scale = 128 * 128 / (program.block_m * program.block_n)
    tile = (program.average_tiles_read if tiles_read is None else tiles_read) + TILE_ENDS * scale
    split_cost = round(SPLIT_ENDS * scale)
    choices = [
        Schedule(num_sms, grid_tiles, row_blocks, cta_group, iterations, split_cost, *shares)
        for shares in _shares(num_sms, grid_tiles, tile, cta_group, row_blocks // cta_group, iterations + split_cost)
    ]
    return min(choices, key=lambda choice: choice.finish_time(tile, scale)).verify()


def _shares(
    num_sms: int, grid_tiles: int, tile: float, cta_group: int, row_groups: int, places: int
) -> Iterator[tuple[int, int, int]]:
    """Yield choices of (long_groups, long_iterations, group_iterations): whole row blocks for some, or a part for all.

    places: iterations of a row block, and the cost of a split.
    """
    groups = num_sms // cta_group
    if row_groups <= groups:
        yield row_groups, places, 1
    total = row_groups * places
    each, extra = divmod(grid_tiles, num_sms)
    # The first `extra` SMs have a grid tile more than the others, unless that is some of every CTA group.
    uneven = -(-extra // cta_group) % groups
    level = grid_tiles * tile / num_sms + total / groups
    guess = max(0, int(level - (each + 1) * tile))
    for long_iterations in range(max(0, guess - 1), guess + 3) if uneven else (0,):
        yield uneven, long_iterations, max(1, -(-(total - uneven * long_iterations) // (groups - uneven)))
