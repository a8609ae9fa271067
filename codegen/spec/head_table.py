"""Head tables: which heads a kernel serves, and by which pattern, at each range of noise levels.

A kernel with a head table reads one row of int32 elements: how many heads it serves, how the rows of their global
queries are split, and for each of those heads its number and its pattern's. Heads with the most work come first, so
that the others fill what they leave uneven.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from planner.codegen.spec.kernel_spec import KernelSpec
from planner.codegen.spec.problem import SLOT_BITS
from planner.codegen.tiling.stream_k import make_schedule

HEADER = 5
"""Numbers before the heads of a row: how many they are, long_groups, long_iterations, group_iterations, max_partials
(see stream_k.py)."""

RoutedHeads = tuple[tuple[int, int], ...]
"""(head, pattern's number) of the heads that a kernel serves, over the whole batch."""


@dataclass(frozen=True)
class HeadTable:
    """levels: noise levels that part the ranges, ascending. rows: one for each range; all are of one length.

    partial_rows: float32 rows of workspace that the longest of them needs.
    """

    levels: tuple[float, ...]
    rows: tuple[tuple[int, ...], ...]
    partial_rows: int


@lru_cache(maxsize=1024)
def make_head_table(spec: KernelSpec, levels: tuple[float, ...], routed: tuple[RoutedHeads, ...]) -> HeadTable:
    """Make the table of a kernel that serves some heads at each range of noise levels."""
    made = [_row(spec, heads) for heads in routed]
    return HeadTable(levels, tuple(row for row, _ in made), max(rows for _, rows in made))


def of_batch(heads: Mapping[int, int], batch: int, per_sequence: int) -> RoutedHeads:
    """Repeat the heads of one sequence, each with its pattern's number, for every sequence of a batch."""
    return tuple((at * per_sequence + head, which) for at in range(batch) for head, which in sorted(heads.items()))


def _row(spec: KernelSpec, routed: RoutedHeads) -> tuple[tuple[int, ...], int]:
    """Make one row of the table; return it with the float32 rows of workspace that it needs."""
    if spec.only_means:
        return _spell(routed, (0, 0, 0, 0), spec.slots), 0
    read = [program.average_tiles_read for program in spec.programs]
    heaviest_first = sorted(routed, key=lambda entry: -read[entry[1]])
    average = sum(read[which] for _, which in routed) / max(1, len(routed))
    iterations = spec.program.iterations
    schedule = make_schedule(spec.program, len(routed), spec.num_sms, iterations, average)
    shares = (schedule.long_groups, schedule.long_iterations, schedule.group_iterations, schedule.max_partials)
    partial_rows = schedule.row_blocks * schedule.max_partials * spec.config.block_m
    return _spell(heaviest_first, shares, spec.slots), partial_rows


def _spell(routed: Sequence[tuple[int, int]], shares: tuple[int, ...], slots: int) -> tuple[int, ...]:
    entries = [which << SLOT_BITS | head for head, which in routed]
    return (len(routed), *shares, *entries, *[0] * (slots - len(routed)))
