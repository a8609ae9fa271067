"""The schedule: which processor handles which tiles, so that all of them finish together.

Query tiles of the grid are dealt out while the kernel runs, each to the processor that is free first. Queries of global
tokens read every key: few rows, but each as long as the sequence. They are handed out before in *units*, one key tile
for each of a *team* of num_sms that walk the same keys with neighbouring rows, so that L2 is shared. Every team
takes one run of units: long enough that all num_sms get equal work, so that the rows fill what is uneven in the
tiles; or, where that should end earlier, a whole row block or nothing, so that no rows have to be merged from parts.
No long row is left for the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from planner.codegen.tiling.tiles import TileProgram
from planner.errors import MalformedValue

TILE_ENDS = 0.7
"""What beginning and ending a query tile takes, in tiles of 128 queries and keys (H100; bench/EXPERIMENTS.md)."""

PART_ENDS = 2
"""The same of a part of a row of global queries: to begin it and to leave it."""

MERGE = 3
"""The same of merging a row block's parts, when all tiles are done."""


@dataclass(frozen=True)
class Schedule:
    """A persistent launch of ``num_sms`` programs.

    grid_tiles, row_blocks: query tiles of the grid, and of global tokens, over all heads and the batch.
    team: num_sms that walk together. units: key tiles per row block. pause: what a part takes besides, in units.
    long_teams, long_run, run: the first ``long_teams`` teams take ``long_run`` units each, all others ``run``; where a
    run passes from one row block to the next the pause counts as units, as it begins another part there.
    """

    num_sms: int
    grid_tiles: int
    row_blocks: int
    team: int
    units: int
    pause: int
    long_teams: int
    long_run: int
    run: int

    @property
    def bundles(self) -> int:
        """Groups of row blocks that a team handles at a time."""
        return self.row_blocks // self.team

    @cached_property
    def max_parts(self) -> int:
        """Teams at most that share a row block's keys."""
        ends = range(self.units, self.bundles * self.units + 1, self.units)
        return max((self.team_of(end - 1) - self.team_of(end - self.units) + 1 for end in ends), default=0)

    def team_of(self, unit: int) -> int:
        """The team that takes a unit."""
        place, border = unit + unit // self.units * self.pause, self.long_teams * self.long_run
        return place // self.long_run if place < border else self.long_teams + (place - border) // self.run

    def first_unit(self, team: int) -> int:
        """Where a team's run begins; that of the team after it is where it ends."""
        long = min(team, self.long_teams)
        block, place = divmod(long * self.long_run + (team - long) * self.run, self.units + self.pause)
        return min(block * self.units + min(place, self.units), self.bundles * self.units)

    def ends(self, tile: float, scale: float) -> float:
        """When the last program should be done, in key tiles, if a tile of the grid takes ``tile`` of them.

        scale: key tiles that do the work of one of 128 queries and keys.
        """
        loads = Counter[float]()
        for team in range(self.num_sms // self.team):
            first, last = self.first_unit(team), self.first_unit(team + 1)
            load = 0.0
            for block in range(first // self.units, -(-last // self.units)):
                units = min(last, (block + 1) * self.units) - max(first, block * self.units)
                load += units + (self.pause if units < self.units else TILE_ENDS * scale)
            loads[load] += self.team
        low, high = max(loads), max(loads) + (self.grid_tiles // self.num_sms + 1) * tile
        while high - low > 0.1:
            middle = (low + high) / 2
            done = sum(count * int((middle - load) // tile) for load, count in loads.items())
            low, high = (low, middle) if done >= self.grid_tiles else (middle, high)
        return high + (self.max_parts > 1) * MERGE * scale

    def verify(self) -> Schedule:
        """Return the schedule; raises MalformedValue if a unit is left over."""
        teams, units = self.num_sms // self.team, self.bundles * self.units
        if units and self.team_of(units - 1) >= teams:
            fault = f"its {teams} teams do not take all of {units} units"
            raise MalformedValue(str(self), fault, "This is a mistake of the planner: please report it.")
        return self


def make_schedule(
    program: TileProgram, heads: int, num_sms: int, units: int, tiles_read: float | None = None
) -> Schedule:
    """The schedule of a program over so many (batch, head) pairs.

    units: key tiles that a row block of global queries reads. tiles_read: those that a tile of the grid reads on
    average, where it is not the program's.
    """
    grid_tiles, row_blocks = heads * program.queries.count, heads * sum(program.row_blocks)
    if not row_blocks:
        return Schedule(num_sms, grid_tiles, 0, 1, units, 0, 0, 1, 1)
    team = next(t for t in (4, 2, 1) if sum(program.row_blocks) % t == 0 and num_sms % t == 0)
    scale = 128 * 128 / (program.block_m * program.block_n)
    tile = (program.average_tiles_read if tiles_read is None else tiles_read) + TILE_ENDS * scale
    pause = round(PART_ENDS * scale)
    choices = [
        Schedule(num_sms, grid_tiles, row_blocks, team, units, pause, *shares)
        for shares in _shares(num_sms, grid_tiles, tile, team, row_blocks // team, units + pause)
    ]
    return min(choices, key=lambda choice: choice.ends(tile, scale)).verify()


def _shares(
    num_sms: int, grid_tiles: int, tile: float, team: int, bundles: int, places: int
) -> Iterator[tuple[int, int, int]]:
    """What (long_teams, long_run, run) could be: a whole row block for some teams, or something for all of them.

    places: units of a row block, and its pause.
    """
    teams = num_sms // team
    if bundles <= teams:
        yield bundles, places, 1
    total = bundles * places
    each, extra = divmod(grid_tiles, num_sms)
    # The first `extra` SMs have a grid tile more than the others, unless that is some of every team.
    uneven = -(-extra // team) % teams
    level = grid_tiles * tile / num_sms + total / teams
    guess = max(0, int(level - (each + 1) * tile))
    for long_run in range(max(0, guess - 1), guess + 3) if uneven else (0,):
        yield uneven, long_run, max(1, -(-(total - uneven * long_run) // (teams - uneven)))
