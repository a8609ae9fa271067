"""The emitted Hopper kernel's own scheduling and index maps, run as plain Python, against ``mask_mod``."""

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hopper_emulator import box_rows
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_specs import PAIRS, SPECS, problem
from strategies import grids, offsets, readings
from whole import Whole

from planner.codegen.emit.bodies import emit
from planner.codegen.spec.body import make_spec
from planner.codegen.spec.config import KernelConfig
from planner.codegen.spec.emitted import ViewArgument
from planner.codegen.spec.feasibility import why_not
from planner.codegen.spec.head_table import HEADER
from planner.codegen.spec.launch_plan import HeadRouting
from planner.patterns.crisscross import CrissCross
from planner.patterns.layout import GlobalTokens, TokenLayout
from planner.patterns.neighborhood import Neighborhood

GROUPS = [(128,), (256,), (8, 16), (16, 8), (16, 16), (4, 32), (1, 8, 16), (2, 8, 8), (4, 4, 8), (4, 8, 8)]


def functions(emitted, row=()):
    """Run the emitted source with Python's functions in place of the language's; return its names. Loads read row."""
    language = SimpleNamespace(
        constexpr=lambda value: value,
        NVMMADistributedLayout=SimpleNamespace,
        DotOperandLayout=SimpleNamespace,
        where=lambda c, a, b: a if c else b,
        maximum=max,
        minimum=min,
        load=lambda at: row[at],
        arange=lambda start, stop, layout: torch.arange(start, stop),
        store=lambda at, stored, mask: stored.extend(torch.where(mask, at, -1).tolist()),
    )
    names = {"gluon": SimpleNamespace(jit=lambda function: function, constexpr_function=lambda function: function)}
    names["gl"] = language
    names |= dict.fromkeys(["mbarrier", "fence_async_shared", "warpgroup_mma", "warpgroup_mma_wait"])
    names |= {
        "async_load": lambda view, at, bar, shared: shared.append((view, at)),
        "async_store": lambda view, at, shared: shared.append((view, at)),
        "reinterpret": lambda shared, dtype, shape, layout: shared,
    }
    exec(emitted.source[emitted.source.index("NUM_SMS =") :], names)
    return SimpleNamespace(**names)


@st.composite
def specs(draw):
    group = draw(st.sampled_from(GROUPS))
    extents = tuple(draw(st.integers(g, min(3 * g + 3, 400))) for g in group)
    runs = [st.lists(st.builds(GlobalTokens, st.just(name), st.integers(1, 300)), max_size=1) for name in "ab"]
    before, after = map(draw, runs)
    layout = TokenLayout((*before, draw(grids(extents)), *after)).verify()
    radius, edge = tuple(draw(st.integers(0, 1)) for _ in group), draw(st.sampled_from(["clamp", "clip"]))
    offset = draw(offsets(group))
    kinds = [CrissCross(group, "lines", offset=offset), CrissCross(group, "planes", offset=offset)]
    pattern = draw(st.sampled_from([*kinds, Neighborhood(group, radius, edge, offset=offset)]))
    block_n, head_dim = draw(st.sampled_from([64, 128])), draw(st.sampled_from([64, 128]))
    asked = problem(
        str(layout),
        str(pattern),
        heads=draw(st.integers(1, 6)),
        head_dim=head_dim,
        num_sms=draw(st.sampled_from([1, 7, 12, 132])),
        returns_lse=True,
    )
    four = head_dim == 64 and block_n == 64 and math.prod(group) % 256 == 0
    config = KernelConfig("sm90", 256 if four else 128, block_n, 4, 4 if block_n == 128 else 8)
    assert why_not(config, asked) is None
    return make_spec(asked, config)


def box_tokens(view, box, starts, counts):
    """Sequence indices of the tokens of a box, the first so many along each axis."""
    tokens = torch.tensor([view.origin])
    for start, count, (_, stride) in zip(starts, counts, view.axes, strict=True):
        tokens = (tokens[:, None] + (int(start) + torch.arange(int(count))) * stride).flatten()
    assert len(box) == len(view.axes)
    return tokens


@st.composite
def has_head_table(draw):
    """Draw a kernel of several patterns, and the heads that it serves."""
    groups = draw(
        st.sampled_from([[(16, 16), (8, 16), (32, 16)], [(4, 8, 8), (2, 8, 8), (4, 16, 8)], [(128,), (256,)]])
    )
    extents = tuple(draw(st.integers(max(along), 2 * max(along) + 5)) for along in zip(*groups, strict=True))
    text = [GlobalTokens("a", draw(st.integers(1, 300)))] * draw(st.integers(0, 1))
    layout = TokenLayout((*text, draw(grids(extents)))).verify()
    drawn = st.sampled_from(groups).flatmap(readings)
    spelled = list(map(str, draw(st.lists(drawn, min_size=1, max_size=3, unique_by=str))))
    spelled += ["dense"] * draw(st.booleans())
    num_sms = draw(st.sampled_from([1, 7, 12, 132]))
    asked = problem(str(layout), "; ".join(spelled), heads=6, batch=2, kv_heads=3, num_sms=num_sms, has_head_table=True)
    config = KernelConfig("sm90", 128, 128, 4, 4)
    assert why_not(config, asked) is None
    slots = draw(st.lists(st.integers(0, asked.slots - 1), unique=True))
    return make_spec(asked, config), [(slot, draw(st.integers(0, len(spelled) - 1))) for slot in slots]


def read_by(kernel, views, mine, numbers):
    """Return the tokens that boxes of a tile of the grid hold, and the means that the tile reads."""
    tokens, means = Counter(), []
    for i in numbers:
        view, *place = kernel.locate(Whole(i), *mine, False)
        box = views[view].box
        extent = place.pop() if "extent" in kernel.locate.__code__.co_varnames else 0
        if views[view].tensor != "k":
            means += range(int(place[0]), int(place[0]) + box[0])
            assert extent >> 24 > len(views)
            continue
        assert not means, "means come last"
        shown = [extent >> 8 * axis & 255 for axis in range(len(box))] if extent else box
        assert not extent or extent >> 24 == view + 1
        tokens.update(box_tokens(views[view].view, box, place[: len(box)], shown).tolist())
    return tokens, means


def as_tuple(coords):
    return coords if isinstance(coords, tuple) else (coords,)


def check(spec, routed, row=(), share=()):
    """Every tile of the heads that are routed is done once, and reads what the mask of its pattern attends."""
    emitted, layout = emit(spec), spec.token_layout
    kernel, program, several = functions(emitted, row), spec.program, len(spec.programs) > 1
    views = [a for a in emitted.arguments if isinstance(a, ViewArgument) and a.name.startswith("k_")]
    table_args = (0, share) if row else ()
    every, tiles_done, iterations_done, checked = torch.arange(layout.tokens), Counter(), Counter(), set()
    fixed_up = sum(program.row_blocks) if hasattr(kernel, "partials_of") else 0
    work_tiles = len(routed) * (program.queries.count + fixed_up)
    for cta in range(spec.num_sms if program.row_blocks else 0):
        for split in range(kernel.splits_of(cta, *table_args)):
            assert kernel.split_of(work_tiles + 1 + split, *table_args) == split
            head, tile, *_, first, count = kernel.decode(cta, work_tiles + 1 + split, *table_args)
            assert count >= 1
            iterations_done.update((int(head), int(tile), int(first) + i) for i in range(count))
    for grid_tile in range(len(routed) * program.queries.count):
        head, tile, *which, first, count = kernel.decode(0, grid_tile, *table_args)
        assert first == 0
        assert count >= 1
        tiles_done[int(head), int(tile)] += 1
        pattern = which[0] if several else 0
        assert routed[int(head)] == pattern
        if (int(tile), pattern) in checked or len(checked) > 12:
            continue
        checked.add((int(tile), pattern))
        coords = as_tuple(kernel.group_coords(Whole(tile), *which))
        tokens, means = read_by(kernel, views, (*which, *coords), range(count))
        queries, groups = spec.programs[pattern].queries, spec.programs[pattern].means
        strides = [stride for _, stride in queries.view.axes]
        along = zip(coords, queries.group, queries.front_pad, strict=True)
        corner = [max(int(c) * g - missing, 0) for c, g, missing in along]
        query = queries.view.origin + sum(x * stride for x, stride in zip(corner, strides, strict=True))
        attends = spec.patterns[pattern].mask_mod(layout)(torch.tensor(query), every)
        assert sorted(tokens.elements()) == every[attends].tolist()
        assert means[: groups.rows if groups else 0] == list(range(groups.rows if groups else 0))
    blocks, iterations = range(sum(program.row_blocks)), range(program.iterations)
    assert tiles_done == Counter((head, tile) for head in routed for tile in range(program.queries.count))
    assert iterations_done == Counter(
        (head, block, iteration) for head in routed for block in blocks for iteration in iterations
    )


@settings(max_examples=40)
@given(specs())
@example(SPECS["hopper_patches"])
def test_every_tile_is_done_once_and_reads_what_the_mask_attends(spec):
    check(spec, dict.fromkeys(range(spec.slots), 0))


@settings(max_examples=40)
@given(has_head_table())
def test_a_table_says_which_heads_are_served_and_by_which_pattern(drawn):
    spec, routed = drawn
    table = HeadRouting((), (tuple(routed),)).table(spec)
    (row,) = table.rows
    share = row[:HEADER] if spec.program.global_runs else row[:1]
    check(spec, dict(routed), row, share)
    partials = [number for number, argument in enumerate(emit(spec).arguments) if argument.name == "partials"]
    assert (table.partial_rows > 0) == bool(partials and routed)


@pytest.mark.parametrize(
    ("layout", "pattern"),
    [
        ("text:512 | h:64 w:64", "neighborhood{radius=1,edge=clamp,group=8x8}"),
        ("text:512 | h:128 w:128", "crisscross{axes=lines,group=8x8}"),
        ("t:9 h:45 w:80 | text:250", "neighborhood{radius=1,edge=clamp,group=2x4x8}"),
        ("t:21 h:45 w:80", "crisscross{axes=lines,group=2x4x8}"),
        ("t:6 h:30 w:52 | text:70", "crisscross{axes=planes,group=1x8x8,pooled=mean}"),
        ("n:1000", "neighborhood{radius=2,edge=clamp,group=64}"),
    ],
)
@settings(max_examples=15)
@given(data=st.data())
def test_both_groups_of_a_pair_find_the_boxes_that_the_mask_attends(layout, pattern, data):
    asked = problem(layout, pattern)
    spec = make_spec(asked, KernelConfig.parse(PAIRS))
    assert why_not(spec.config, asked) is None
    emitted, queries, axis = emit(spec), spec.program.queries, spec.program.queries.pair_axis
    kernel, views = functions(emitted), [a for a in emitted.arguments if isinstance(a, ViewArgument)]
    views = [view for view in views if view.name.startswith("k_")]
    tile = Whole(data.draw(st.integers(0, queries.count - 1)))
    _, _, first, tiles = kernel.decode(0, int(tile))
    assert first == 0
    shared, odd_box, exclusive, remainder = map(int, kernel.pair_counts(tile, False, tiles))
    assert shared >= 1
    pair = as_tuple(kernel.group_coords(tile))
    for wg in range(2):
        whole = [remainder + kernel.place_of(i, exclusive, wg) for i in range(tiles - exclusive - remainder)]
        assert whole[-1] == tiles - 1
        boxes = [(0, wg)] * int(remainder) + [(place, side) for place in whole for side in range(2)]
        numbers = [
            kernel.box_number(Whole(place), Whole(side), shared, odd_box, exclusive, remainder) for place, side in boxes
        ]
        tokens, means = read_by(kernel, views, pair, sorted(numbers))
        mine = [2 * c + wg if at == axis else c for at, c in enumerate(pair)]
        along = zip(mine, spec.patterns[0].group, queries.view.axes, strict=True)
        query = queries.view.origin + sum(int(c) * g * stride for c, g, (_, stride) in along)
        every = torch.arange(spec.keys)
        attends = spec.patterns[0].near.mask_mod(spec.token_layout)(torch.tensor(query), every)
        assert sorted(tokens.elements()) == every[attends].tolist()
        groups = spec.program.means
        assert means[: groups.rows if groups else 0] == list(range(groups.rows if groups else 0))


class LogSums(list):
    """Where in the output the log-sum-exps of rows were put, -1 for rows that were left out."""

    type = SimpleNamespace(layout=None)


def tokens_of_box(view, at):
    """Return the token of each row of a box, -1 outside the view."""
    rows, inside = box_rows(view.argument, at)
    return torch.where(inside, rows, -1)


@settings(max_examples=40)
@given(specs())
@example(replace(SPECS["hopper_patches"], returns_lse=True))
def test_queries_come_from_where_their_output_goes_each_once_and_no_box_begins_outside(spec):
    emitted, layout = emit(spec), spec.token_layout
    kernel, program = functions(emitted), spec.program

    def views(letter):
        return [
            SimpleNamespace(dtype=None, block_type=SimpleNamespace(shape=None), layout=None, argument=argument)
            for argument in emitted.arguments
            if isinstance(argument, ViewArgument) and argument.tensor == letter
        ]

    q_views, o_views = views("q"), views("o")
    written = Counter()
    tiles = [(tile, False) for tile in range(program.queries.count)]
    tiles += [(tile, True) for tile in range(sum(program.row_blocks))]
    group, front_pad = program.queries.group, program.queries.front_pad
    for tile, is_global in tiles:
        for wg in range(spec.config.block_m // 64):
            loaded, stored = [], []
            kernel.load_queries(Whole(tile), is_global, wg, 0, 0, *q_views, None, loaded)
            kernel.store_output(Whole(tile), is_global, wg, 0, 0, *o_views, stored)
            ((view, (_, *at, _)),) = stored
            assert all(x >= 0 for x in at), "TMA refuses to write a box that begins outside"
            rows = tokens_of_box(view, at)
            ((view, (_, *at, _)),) = loaded
            assert torch.equal(tokens_of_box(view, at), rows)
            places = LogSums()
            kernel.store_lse(0, tile, is_global, wg, places)
            assert places == rows.tolist()
            tokens = rows[rows >= 0]
            written.update(tokens.tolist())
            if not is_global:
                outside = hasattr(kernel, "lies_outside") and kernel.lies_outside(Whole(tile), wg)
                assert bool(outside) == (len(tokens) == 0)
            if is_global or not program.coords or not len(tokens):
                continue
            coords = as_tuple(kernel.group_coords(Whole(tile)))
            places = torch.unravel_index(tokens - program.queries.view.origin, layout.grid.sizes)
            for place, c, g, missing in zip(places, coords, group, front_pad, strict=True):
                assert ((place + missing) // g == int(c)).all()
    assert written == Counter(range(layout.tokens))


@given(specs())
def test_partials_of_a_row_are_counted_and_placed_apart(spec):
    kernel, program = functions(emit(spec)), spec.program
    if not program.global_runs:
        return
    row_groups = spec.heads * sum(program.row_blocks) // kernel.CTA_GROUP
    if not hasattr(kernel, "group_of_iteration"):
        begins = [kernel.first_iteration(group) for group in range(spec.num_sms // kernel.CTA_GROUP + 1)]
        assert all(begin % kernel.ITERATIONS == 0 for begin in begins)
        assert (begins[0], begins[-1]) == (0, row_groups * kernel.ITERATIONS)
        return
    for row_group in range(row_groups):
        groups = [
            kernel.group_of_iteration(row_group * kernel.ITERATIONS + iteration)
            for iteration in range(kernel.ITERATIONS)
        ]
        assert groups == sorted(groups)
        assert len(set(groups)) == groups[-1] - groups[0] + 1 <= kernel.MAX_PARTIALS
        for group in set(groups):
            mine = [
                row_group * kernel.ITERATIONS + iteration for iteration, owner in enumerate(groups) if owner == group
            ]
            first, last = kernel.first_iteration(group), kernel.first_iteration(group + 1)
            assert first <= mine[0] <= mine[-1] < last


@settings(max_examples=30)
@given(has_head_table())
def test_partials_of_a_tabled_row_are_placed_within_its_workspace(drawn):
    spec, routed = drawn
    table = HeadRouting((), (tuple(routed),)).table(spec)
    share, kernel = table.rows[0][:HEADER], functions(emit(spec))
    if not spec.program.global_runs:
        return
    row_groups = len(routed) * kernel.ROW_GROUPS_PER_HEAD
    for row_group in range(row_groups):
        groups = [
            kernel.group_of_iteration(row_group * kernel.ITERATIONS + iteration, 0, share)
            for iteration in range(kernel.ITERATIONS)
        ]
        assert groups == sorted(groups)
        assert len(set(groups)) == groups[-1] - groups[0] + 1 <= share[-1]
        for group in set(groups):
            mine = [
                row_group * kernel.ITERATIONS + iteration for iteration, owner in enumerate(groups) if owner == group
            ]
            assert (
                kernel.first_iteration(group, 0, share)
                <= mine[0]
                <= mine[-1]
                < kernel.first_iteration(group + 1, 0, share)
            )
    assert table.partial_rows >= row_groups * kernel.CTA_GROUP * share[-1] * spec.config.block_m
