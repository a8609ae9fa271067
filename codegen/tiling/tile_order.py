"""The order of query tiles: where it saves reading, wave by wave of neighbours instead of row by row of the grid.

A wave is as many tiles as there are SMs. Its tiles are handled at once and share what they read: one of them brings
it to L2. What they read in all depends on how they lie: a row of tiles reads every line that crosses it, a square
wave reads few.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from planner.patterns.axis_set import AxisSet
from planner.patterns.base import Pattern

ROW_READINGS, WAVE_SHARE = 4.0, 0.75
"""The order is by waves where rows would read all keys so many times, and waves read at most this share of that.

Measured on an H100: where they save less, rows are up to 2 % faster (bench/EXPERIMENTS.md).
"""


@lru_cache(maxsize=1024)
def wave_sides(
    pattern: Pattern, groups: tuple[int, ...], tiles: tuple[int, ...], wide: tuple[Fraction, ...], wave_size: int
) -> tuple[int, ...]:
    """Return the sides in tiles of a wave, all of the grid where rows of tiles do as well.

    Along all axes but the first they divide the grid. groups, tiles: how many lie along each axis. wide: how many
    groups, or what part of one, a tile holds along each. wave_size: query tiles that are handled at once, one on each
    SM.
    """
    rows, left = list[int](), wave_size
    for count in reversed(tiles):
        rows.append(min(count, max(1, left)))
        left //= rows[-1]
    of_rows = _readings(pattern, groups, tiles, wide, rows[::-1])
    sides = itertools.product(
        range(1, tiles[0] + 1), *([side for side in range(1, n + 1) if n % side == 0] for n in tiles[1:])
    )
    fitting = (each for each in sides if wave_size / 2 <= math.prod(each) <= wave_size)
    least, best = min(((_readings(pattern, groups, tiles, wide, each), each) for each in fitting), default=(1.0, tiles))
    return best if of_rows >= ROW_READINGS and least <= WAVE_SHARE * of_rows else tiles


def _readings(
    pattern: Pattern, groups: Sequence[int], tiles: Sequence[int], wide: Sequence[Fraction], sides: Sequence[int]
) -> float:
    """Return how many times all keys are read, if each wave of tiles reads a key once."""
    corners = itertools.product(*(range(0, n, side) for n, side in zip(tiles, sides, strict=True)))
    read = sum(
        _read_together(pattern, groups, [_span(*along) for along in zip(corner, sides, wide, groups, strict=True)])
        for corner in corners
    )
    return read / math.prod(groups)


def _span(first: int, side: int, wide: Fraction, groups: int) -> tuple[int, int]:
    """Return the (first, stop) groups of some tiles along an axis."""
    return min(math.floor(first * wide), groups - 1), min(math.ceil((first + side) * wide), groups)


def _read_together(pattern: Pattern, groups: Sequence[int], spans: Sequence[tuple[int, int]]) -> int:
    """Count the groups that the groups of a box read, each once."""
    boxes = [
        [_read_along(axis_set, *span, count) for axis_set, span, count in zip(box, spans, groups, strict=True)]
        for box in pattern.boxes()
    ]
    total = 0
    for number in range(1, len(boxes) + 1):
        for chosen in itertools.combinations(boxes, number):
            shared = math.prod(len(frozenset.intersection(*along)) for along in zip(*chosen, strict=True))
            total += shared if number % 2 else -shared
    return total


@lru_cache(maxsize=4096)
def _read_along(axis_set: AxisSet, first: int, stop: int, groups: int) -> frozenset[int]:
    """Return the groups along an axis that the groups from first to stop read."""
    ranges = (along for c in range(first, stop) for along in axis_set.ranges(c, groups))
    return frozenset(itertools.chain.from_iterable(range(int(start), int(end)) for start, end in ranges))
