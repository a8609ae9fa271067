import heapq
import itertools
import math
from collections import Counter
from contextlib import contextmanager

import pytest
import sympy
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import layouts, patterns, problems
from whole import Whole

import planner.codegen.tiling.program
import planner.codegen.tiling.tile_order
from planner.codegen.tiling.boxes import View
from planner.codegen.tiling.program import tile_programs
from planner.codegen.tiling.query_tiles import QueryTiles, pair_axis
from planner.codegen.tiling.stream_k import FIX_UP, SPLIT_ENDS, TILE_ENDS, Schedule, make_schedule
from planner.codegen.tiling.sympy_source import quotient, source_of
from planner.patterns.layout import TokenLayout
from planner.patterns.spelling import parse_pattern

INDEX = sympy.Symbol("i", integer=True, nonnegative=True)
blocks = st.sampled_from([16, 32, 64, 128])


def evaluate(expr, **values):
    """Return the number that the printed source computes."""
    return int(eval(source_of(expr), {"min": min, "max": max}, {name: Whole(x) for name, x in values.items()}))


def tokens_of(starts, stops, box, view):
    """Sequence indices of a box's tokens that lie in the view and before the stops."""
    for digits in itertools.product(*map(range, box)):
        place = [start + digit for start, digit in zip(starts, digits, strict=True)]
        if all(0 <= x < stop for x, stop in zip(place, stops, strict=True)):
            yield view.origin + sum(x * stride for x, (_, stride) in zip(place, view.axes, strict=True))


def names(coords):
    return {f"c{axis}": c for axis, c in enumerate(coords)}


@contextmanager
def small_waves():
    """Tiles are ordered by waves, where there are any, whatever it saves."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr("planner.codegen.tiling.tile_order.ROW_READINGS", 0.0)
        changed.setattr("planner.codegen.tiling.tile_order.WAVE_SHARE", math.inf)
        caches = planner.codegen.tiling.tile_order.wave_sides, planner.codegen.tiling.program._tile_program
        for cache in caches:
            cache.cache_clear()
        yield
        for cache in caches:
            cache.cache_clear()


@given(problems(), blocks, blocks, st.sampled_from([1, 2, 4, 6, 9]))
def test_query_tiles_hold_each_grid_token_once_with_its_own_group(problem, block_m, block_n, num_sms):
    with small_waves():
        check_query_tiles(problem, block_m, block_n, num_sms)


def check_query_tiles(problem, block_m, block_n, num_sms):
    layout, grid, pattern = problem
    (program,) = tile_programs(layout, [pattern], layout.tokens, block_m, block_n, num_sms)
    queries, order, found = program.queries, grid.order(), Counter()
    for number in range(queries.count):
        coords = [evaluate(c, i=number) for c in queries.coords(INDEX)]
        starts = [evaluate(start, i=number) for start in queries.starts(INDEX)]
        stops = [evaluate(stop, **names(coords)) for stop in queries.stops(program.coords)]
        tokens = list(tokens_of(starts, stops, queries.box, queries.view))
        first, size = grid.start(coords), grid.size(coords)
        assert all(before or start >= 0 for before, start in zip(queries.begins_before, starts, strict=True))
        ends = zip(queries.may_pass, starts, queries.box, stops, strict=True)
        assert all(passes or start + b <= stop for passes, start, b, stop in ends)
        assert set(tokens) <= {layout.grid_start + int(t) for t in order[first : first + size]}
        found.update(tokens)
    assert sorted(found.elements()) == list(range(layout.grid_start, layout.grid_start + layout.grid.tokens))


@given(problems(), blocks)
def test_key_tiles_hold_exactly_what_the_mask_attends(problem, block_n):
    layout, grid, pattern = problem
    (program,) = tile_programs(layout, [pattern], layout.tokens, 64, block_n, 132)
    attends, every, order = pattern.mask_mod(layout), torch.arange(layout.tokens), grid.order()
    for coords in itertools.islice(grid.coords(), 12):
        read = Counter()
        for tiles in program.keys:
            stops = [evaluate(span.stop, **names(coords)) for span in tiles.region.spans]
            for number in range(evaluate(tiles.count, **names(coords))):
                starts = [evaluate(start, i=number, **names(coords)) for start in tiles.starts(INDEX)]
                tokens = list(tokens_of(starts, stops, tiles.box, tiles.view))
                read.update(tokens)
                past = [s + b > stop for s, b, stop in zip(starts, tiles.box, stops, strict=True)]
                assert all(ragged or not p for ragged, p in zip(tiles.ragged, past, strict=True))
        query = layout.grid_start + order[grid.start(coords)]
        assert sorted(read.elements()) == every[attends(query, every)].tolist()


@st.composite
def paired(draw):
    """(layout, pattern) whose groups of 64 tokens make pairs."""
    group = draw(st.sampled_from([(8, 8), (4, 16), (2, 32), (1, 8, 8), (2, 4, 8), (64,)]))
    layout = draw(layouts(tuple(draw(st.integers(side, 3 * side + 2)) for side in group)))
    pattern = draw(patterns(group))
    assume(pair_axis(layout, pattern, 128) is not None)
    return layout, pattern


@settings(max_examples=25)
@given(paired(), st.sampled_from([64, 128]))
def test_each_group_of_a_pair_reads_what_both_do_and_what_it_does_alone(problem, block_n):
    layout, pattern = problem
    (program,) = tile_programs(layout, [pattern], layout.tokens, 128, block_n, 132, paired=True)
    axis, queries = pair_axis(layout, pattern, 128), program.queries
    attends, every, grid = pattern.mask_mod(layout), torch.arange(layout.tokens), pattern.grid(layout.grid.sizes)
    first, second = program.exclusive
    both = program.keys[: len(program.keys) - len(first) - len(second)]
    assert program.keys == (*both, *first, *second)
    for number in range(min(queries.count, 12)):
        coords = [evaluate(c, i=number) for c in queries.coords(INDEX)]
        start = [evaluate(c, i=number) for c in queries.starts(INDEX)]
        counts = [sum(evaluate(tiles.count, **names(coords)) for tiles in kind) for kind in (both, first, second)]
        if program.pairs_share_evenly:
            assert counts[0] >= program.boxes == 2
            assert counts[1] == counts[2]
            tiles_of_one = -(-(counts[0] + counts[1]) // 2) + program.mean_tiles
            tiles_of_other = (counts[1] + counts[0] % 2) // 2
            assert evaluate(program.tiles_read, **names(coords)) == tiles_of_one + tiles_of_other
        for half, alone in enumerate((first, second)):
            mine = [2 * c + half if at == axis else c for at, c in enumerate(coords)]
            assert start[axis] + half * queries.box[axis] // 2 == mine[axis] * pattern.group[axis]
            read = Counter()
            for tiles in (*both, *alone):
                stops = [evaluate(span.stop, **names(coords)) for span in tiles.region.spans]
                for index in range(evaluate(tiles.count, **names(coords))):
                    starts = [evaluate(start, i=index, **names(coords)) for start in tiles.starts(INDEX)]
                    read.update(tokens_of(starts, stops, tiles.box, tiles.view))
            query = layout.grid_start + grid.order()[grid.start(mine)]
            assert sorted(read.elements()) == every[attends(query, every)].tolist()


@given(problems(), st.integers(1, 140), st.integers(1, 8))
def test_the_schedule_hands_out_every_iteration_and_tile_once(problem, num_sms, heads):
    layout, _, pattern = problem
    (program,) = tile_programs(layout, [pattern], layout.tokens, 64, 64, 132)
    iterations = program.iterations
    schedule = make_schedule(program, heads, num_sms, iterations)
    assert schedule.row_blocks == heads * sum(-(-size // 64) for _, size in program.global_runs)
    owners = [schedule.group_of(iteration) for iteration in range(schedule.row_groups * iterations)]
    assert owners == sorted(owners)
    assert all(group < num_sms // schedule.cta_group for group in owners)
    for row_group in range(schedule.row_groups):
        assert len(set(owners[row_group * iterations : (row_group + 1) * iterations])) <= schedule.max_partials


@pytest.mark.parametrize("extra", [0, 1, 60, 127, 128, 129, 130, 131])
@pytest.mark.parametrize("text", [128, 256, 512, 700])
def test_no_iteration_is_left_over_however_the_tiles_divide(extra, text):
    layout, pattern = (
        TokenLayout.parse(f"text:{text} | h:{132 + extra} w:128"),
        parse_pattern("crisscross{group=1x128}"),
    )
    (program,) = tile_programs(layout, [pattern], layout.tokens, 128, 128, 132)
    iterations = program.iterations
    schedule = make_schedule(program, 1, 132, iterations)
    assert schedule.grid_tiles % 132 == extra
    assert schedule.group_of(schedule.row_groups * iterations - 1) < 132 // schedule.cta_group


def test_rows_of_global_queries_fill_what_is_uneven_in_the_tiles():
    layout, pattern = TokenLayout.parse("text:512 | h:64 w:64"), parse_pattern("crisscross{group=16x16}")
    (program,) = tile_programs(layout, [pattern], layout.tokens, 128, 128, 132)
    schedule = make_schedule(program, 24, 132, 36)
    work = [math.ceil((schedule.grid_tiles - cta) / 132) * (18 + TILE_ENDS) for cta in range(132)]
    splits = {(schedule.group_of(iteration), iteration // 36) for iteration in range(schedule.row_groups * 36)}
    for member in range(schedule.cta_group):
        for iteration in range(schedule.row_groups * 36):
            work[schedule.group_of(iteration) * schedule.cta_group + member] += 1
        for group, _ in splits:
            work[group * schedule.cta_group + member] += SPLIT_ENDS
    assert max(work) <= 1.01 * sum(work) / 132


def test_row_blocks_are_read_whole_where_the_tiles_fill_what_that_leaves_uneven():
    layout = TokenLayout.parse("text:512 | h:64 w:64")
    (program,) = tile_programs(
        layout, [parse_pattern("crisscross{group=8x8}")], layout.tokens, 128, 128, 132, paired=True
    )
    schedule = make_schedule(program, 24, 132, 36)
    assert schedule.max_partials == 1
    assert [schedule.first_iteration(group) for group in range(34)] == [36 * min(group, 24) for group in range(34)]
    assert make_schedule(program, 24, 92, 36).max_partials > 1  # 23 groups of four for 24 row_groups


@given(st.integers(1, 300), st.floats(0.5, 40), st.integers(1, 12), st.integers(1, 40), st.integers(1, 40))
def test_a_schedule_finishes_when_handing_out_its_tiles_does(grid_tiles, tile, row_groups, iterations, run):
    long_iterations = run + 3
    schedule = Schedule(40, grid_tiles, 2 * row_groups, 2, iterations, 2, 3, long_iterations, run)
    assume(3 * long_iterations + 17 * run >= row_groups * (iterations + 2))
    loads, splits = [0.0] * 40, Counter(schedule.group_of(iteration) for iteration in range(row_groups * iterations))
    shared = False
    for group in splits:
        blocks = Counter(u // iterations for u in range(row_groups * iterations) if schedule.group_of(u) == group)
        shared |= any(count < iterations for count in blocks.values())
        for member in range(2):
            loads[2 * group + member] = sum(n + (2 if n < iterations else 0.5) for n in blocks.values())
    heapq.heapify(loads)
    for _ in range(grid_tiles):
        heapq.heapreplace(loads, loads[0] + tile)
    expected = max(loads) + (FIX_UP * 0.5 / TILE_ENDS if shared else 0)
    assert schedule.finish_time(tile, 0.5 / TILE_ENDS) == pytest.approx(expected, abs=0.11)


def test_two_warpgroups_cut_a_box_along_its_slowest_side_and_a_pair_between_its_groups():
    view = View(0, ((16, 128), (128, 1)))
    assert QueryTiles(view, (8, 16), (8, 16), (0, 0)).share == (4, 16)
    assert QueryTiles(view, (1, 128), (1, 128), (0, 0)).share == (1, 64)
    assert QueryTiles(view, (8, 16), (8, 16), (0, 0), pair_axis=1).share == (8, 8)


@given(st.integers(0, 1000), st.integers(1, 50))
def test_quotients_print_as_floor_division(a, b):
    x = sympy.Symbol("x", integer=True, nonnegative=True)
    assert evaluate(quotient(x + 3, b) * 2 + quotient(4 * b * x, 2 * b), x=a) == (a + 3) // b * 2 + 2 * a
