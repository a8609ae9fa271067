"""The emitted Hopper kernel's own scheduling and index maps, run as plain Python, against ``mask_mod``."""

from collections import Counter
from types import SimpleNamespace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_specs import SPECS, problem
from strategies import grids, offsets
from test_tiles import Whole

from codegen.config import KernelConfig, why_not
from codegen.emit import emit
from codegen.emitted import ViewArgument
from planner.layout import GlobalTokens, TokenLayout
from planner.pattern import CrissCross, Neighborhood

GROUPS = [(128,), (256,), (8, 16), (16, 8), (16, 16), (4, 32), (1, 8, 16), (2, 8, 8), (4, 4, 8), (4, 8, 8)]


def functions(emitted):
    """The names that the emitted source defines, with the language replaced by Python's."""
    language = SimpleNamespace(
        constexpr=lambda value: value,
        where=lambda c, a, b: a if c else b,
        arange=lambda start, stop, layout: torch.arange(start, stop),
        store=lambda at, stored, mask: stored.extend(torch.where(mask, at, -1).tolist()),
    )
    names = {"gluon": SimpleNamespace(jit=lambda function: function), "gl": language}
    names |= dict.fromkeys(["mbarrier", "fence_async_shared", "warpgroup_mma", "warpgroup_mma_wait"])
    names["tma"] = SimpleNamespace(
        async_copy_global_to_shared=lambda view, at, bar, shared: shared.append((view, at)),
        async_copy_shared_to_global=lambda view, at, shared: shared.append((view, at)),
    )
    exec(emitted.source[emitted.source.index("PROCESSORS =") :], names)
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
    kinds = [CrissCross(group, "lines", offset), CrissCross(group, "planes", offset)]
    pattern = draw(st.sampled_from([*kinds, Neighborhood(group, radius, edge, offset)]))
    block_n = draw(st.sampled_from([64, 128]))
    asked = problem(
        str(layout),
        str(pattern),
        heads=draw(st.integers(1, 6)),
        processors=draw(st.sampled_from([1, 7, 12, 132])),
        returns_lse=True,
    )
    config = KernelConfig("sm90", 128, block_n, 4, 2 if block_n == 128 else 4)
    assert why_not(config, asked) is None
    return asked.with_config(config)


def box_tokens(view, box, starts, counts):
    """Sequence indices of the tokens of a box, the first so many along each axis."""
    tokens = torch.tensor([view.origin])
    for start, count, (_, stride) in zip(starts, counts, view.axes, strict=True):
        tokens = (tokens[:, None] + (int(start) + torch.arange(int(count))) * stride).flatten()
    assert len(box) == len(view.axes)
    return tokens


@settings(max_examples=40)
@given(specs())
def test_every_tile_is_done_once_and_reads_what_the_mask_attends(spec):
    emitted, layout = emit(spec), spec.token_layout
    kernel, program = functions(emitted), spec.program
    views = [argument for argument in emitted.arguments if argument.name.startswith("k_tokens")]
    attends, every = spec.parsed_pattern.mask_mod(layout), torch.arange(layout.tokens)
    tiles_done, units_done, checked = Counter(), Counter(), set()
    for cta in range(spec.processors):
        pieces, runs = kernel.work_of(cta)
        for piece in range(pieces):
            head, tile, is_global, first, count = kernel.piece_of(cta, piece, runs)
            assert count >= 1
            if is_global:
                units_done.update((int(head), int(tile), int(first) + i) for i in range(count))
                continue
            tiles_done[int(head), int(tile)] += 1
            if int(tile) in checked or len(checked) > 12:
                continue
            checked.add(int(tile))
            coords = kernel.group_of(Whole(tile))
            coords = coords if isinstance(coords, tuple) else (coords,)
            read = Counter()
            for i in range(count):
                view, *place = kernel.locate(Whole(i), *coords, False)
                box = views[view].box
                note = place.pop() if "note" in kernel.locate.__code__.co_varnames else 0
                shown = [note >> 8 * axis & 255 for axis in range(len(box))] if note else box
                assert not note or note >> 24 == view + 1
                read.update(box_tokens(views[view].view, box, place[: len(box)], shown).tolist())
            origin, strides = program.queries.view.origin, [stride for _, stride in program.queries.view.axes]
            group, lead = program.queries.group, program.queries.lead
            corner = [max(int(c) * g - missing, 0) for c, g, missing in zip(coords, group, lead, strict=True)]
            query = origin + sum(x * stride for x, stride in zip(corner, strides, strict=True))
            assert sorted(read.elements()) == every[attends(torch.tensor(query), every)].tolist()
    heads, blocks = range(spec.heads), range(sum(program.row_blocks))
    assert tiles_done == Counter((head, tile) for head in heads for tile in range(program.queries.count))
    units = range(int(program.everything.count))
    assert units_done == Counter((head, block, unit) for head in heads for block in blocks for unit in units)


class Shared(list):
    """What was copied to or from shared memory, and where in the tensor it lies."""

    def _reinterpret(self, dtype, shape, layout):
        return self


class LogSums(list):
    """Where in the output the log-sum-exps of rows were put, -1 for rows that were left out."""

    type = SimpleNamespace(layout=None)


def box_rows(view, at):
    """The token of each row of a box, -1 outside the view."""
    argument = view.argument
    rows = torch.stack(torch.meshgrid(*map(torch.arange, argument.box), indexing="ij"), -1).flatten(0, -2)
    places = rows + torch.tensor([int(x) for x in at])
    sizes, strides = (torch.tensor(x) for x in zip(*argument.view.axes, strict=True))
    inside = ((places >= 0) & (places < sizes)).all(-1)
    return torch.where(inside, argument.view.origin + (places * strides).sum(-1), -1)


@settings(max_examples=40)
@given(specs())
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
    group, lead = program.queries.group, program.queries.lead
    for tile, is_global in tiles:
        for half in range(2):
            loaded, stored = Shared(), Shared()
            kernel.load_queries(Whole(tile), is_global, half, 0, 0, *q_views, None, loaded)
            kernel.store_output(Whole(tile), is_global, half, 0, 0, *o_views, stored)
            ((view, (_, *at, _)),) = stored
            assert all(x >= 0 for x in at), "the copy engine refuses to write a box that begins outside"
            rows = box_rows(view, at)
            ((view, (_, *at, _)),) = loaded
            assert torch.equal(box_rows(view, at), rows)
            places = LogSums()
            kernel.store_lse(0, tile, is_global, half, places)
            assert places == rows.tolist()
            tokens = rows[rows >= 0]
            written.update(tokens.tolist())
            if is_global or not program.coords or not len(tokens):
                continue
            coords = kernel.group_of(Whole(tile))
            coords = coords if isinstance(coords, tuple) else (coords,)
            places = torch.unravel_index(tokens - program.queries.view.origin, layout.grid.sizes)
            for place, c, g, missing in zip(places, coords, group, lead, strict=True):
                assert ((place + missing) // g == int(c)).all()
    assert written == Counter(range(layout.tokens))


@given(specs())
def test_parts_of_a_row_are_counted_and_placed_apart(spec):
    kernel, program = functions(emit(spec)), spec.program
    if not program.global_runs:
        return
    bundles = spec.heads * sum(program.row_blocks) // kernel.TEAM
    for bundle in range(bundles):
        teams = [kernel.team_of(bundle * kernel.UNITS + unit) for unit in range(kernel.UNITS)]
        assert teams == sorted(teams)
        assert len(set(teams)) == teams[-1] - teams[0] + 1 <= kernel.MAX_PARTS
        for team in set(teams):
            mine = [bundle * kernel.UNITS + unit for unit, owner in enumerate(teams) if owner == team]
            first, last = kernel.first_unit(team), kernel.first_unit(team + 1)
            assert first <= mine[0] <= mine[-1] < last


def test_a_gated_kernel_has_no_work_where_its_gate_is_closed():
    kernel = functions(emit(SPECS["hopper_gated"]))
    pieces, runs = kernel.work_of(3, 1)
    assert pieces > runs > 0
    assert kernel.work_of(3, 0) == (0, runs)
