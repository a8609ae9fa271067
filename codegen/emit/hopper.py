"""Emission for Hopper: a warp-specialised Gluon kernel.

A warp finds boxes of tokens where the model has them, two keep the copy engine busy with them, one with keys, one with
values; two warpgroups multiply, or four. The body is the template; what differs between plans are the index maps, which
are printed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import sympy

from planner.codegen.emit.kernel_source import (
    DEALT,
    TABLE,
    WORKSPACE,
    Argument,
    Emitted,
    ViewArgument,
    by_pattern,
    header,
    indented,
    reads_groups,
    render,
)
from planner.codegen.spec.head_table import HEADER
from planner.codegen.spec.kernel_spec import DTYPES, SLOT_BITS, KernelSpec
from planner.codegen.tiling.stream_k import make_schedule
from planner.codegen.tiling.sympy_source import Names, source_of
from planner.codegen.tiling.tiles import SHARE, KeyTiles, MeanTiles, QueryTiles, TileProgram, View
from planner.errors import times

REGISTERS = {2: (240, 24), 4: (112, 112, 112, 32)}
"""Registers of a thread, by how many warpgroups multiply: in all of them but the first, and in warps that find or copy.

The latter are one more warpgroup, of which a warp does nothing."""

_INDEX = sympy.Symbol("i", integer=True, nonnegative=True)
_J = sympy.Symbol("j", integer=True, nonnegative=True)
_X = ["x0", "x1", "x2"]
_WORD_OF_COLUMN = {
    2: "gl.where(column < 32, word0, word1)",
    4: "gl.where(column < 64, gl.where(column < 32, word0, word1), gl.where(column < 96, word2, word3))",
}
_TILE = sympy.Symbol("tile", integer=True, nonnegative=True)


def emit_sm90(spec: KernelSpec) -> Emitted:
    """Source and arguments of the kernel."""
    program, config = spec.program, spec.config
    heads = spec.batch * spec.heads
    units = program.units
    schedule = make_schedule(program, heads, spec.num_sms, units)
    warpgroups = config.block_m // SHARE
    registers = REGISTERS[warpgroups]
    split = bool(program.global_runs)
    merges = split and (spec.has_head_table or schedule.max_parts > 1)
    items = _items(spec, merges)
    key_tiles = [tiles for each in spec.programs for tiles in each.keys] + [program.everything] * split
    means = {each.means.kind: each.means for each in spec.programs if each.means is not None}
    k_views = _key_views(key_tiles, means, "k", spec)
    v_views = _key_views(key_tiles, means, "v", spec)
    q_views, o_views = (_query_views(letter, spec) for letter in "qo")
    names = {
        letter: ", ".join(view.name for view in views)
        for letter, views in zip("qkvo", (q_views, k_views, v_views, o_views), strict=True)
    }
    passes_end = split and _passes_end(program)
    hides = spec.key_mask or any(any(tiles.ragged) for tiles in key_tiles) or passes_end
    noted = hides or bool(means)
    located = _located(k_views, noted)
    x = [name for name in located if name in _X]
    words = [f"word{number}" for number in range(config.block_n // 32)]
    coords = [str(c) for c in program.coords]
    several = len(spec.programs) > 1
    read = [each.tiles_read for each in spec.programs]
    mine = ["which"] * several + coords
    paired = config.body == "pairs"
    readers = [mine if means else []]
    if paired and means:
        assert program.queries.pair_axis is not None
        axis = coords[program.queries.pair_axis]
        readers = [[f"2 * {name} + {wg}" if name == axis else name for name in mine] for wg in range(2)]
    source = render(
        "sm90.py.jinja",
        title=f"Attention {spec.pattern} over {spec.layout}, for SM90.",
        header=header(spec),
        spec=spec,
        config=config,
        program=program,
        schedule=schedule,
        split=split,
        merges=merges,
        block_m=config.block_m,
        block_n=config.block_n,
        warpgroups=warpgroups,
        begins_early=warpgroups == 2,
        registers=registers,
        head_block=spec.head_block,
        limit="2.0**15" if spec.dtype == "float16" else "2.0**48",
        dtype_bytes=DTYPES[spec.dtype],
        coords=coords,
        coords_unpacked=", ".join(coords),
        several=several,
        which_arg=", which" * several,
        which_first="which, " * several,
        c_args="".join(f"{name}, " for name in mine),
        group_of=indented(_group_of(spec.programs)),
        tiles_vary=any(each.free_symbols for each in read),
        tiles_read=indented(_counted(read)),
        paired=paired,
        shared_vary=any(each.shared_boxes.free_symbols for each in spec.programs),
        shared_boxes=indented(_counted([each.shared_boxes for each in spec.programs])),
        channels=k_views[0].channels,
        mean_tiles=indented(by_pattern([_mean_tiles(spec, each) for each in spec.programs])),
        means=bool(means),
        visible_takes="".join(f", {name}" for name in mine) if means else "",
        table_args=", row, share" * spec.has_head_table,
        table_header=HEADER,
        grid_tiles="share[0] * TILES_PER_HEAD" if spec.has_head_table else "GRID_TILES",
        items=items,
        is_global=f"item > {items}" if split else "False",
        slot_bits=SLOT_BITS,
        bundles_per_head=sum(program.row_blocks) // schedule.team,
        kv_views=", ".join(view.stem for view in k_views),
        q_views=names["q"],
        k_views=names["k"],
        v_views=names["v"],
        o_views=names["o"],
        first_q_view=q_views[0].name,
        one_tuple=lambda text: "" if "," in text else ",",
        view_arguments=[view.name for view in (*q_views, *k_views, *v_views, *o_views)],
        locate=indented(_locate(spec, program if split else None, k_views, noted)),
        copy_box=indented(_copy_box(k_views)),
        visible_words=indented(_visible_words(key_tiles, k_views, spec, passes_end)),
        words=words,
        first_words=words[: len(words) // program.boxes] if hides else [],
        word_of_column=_WORD_OF_COLUMN[len(words)],
        view_list=", ".join(f"{number} {view.stem}" for number, view in enumerate(k_views)),
        noted=noted,
        hides=hides,
        x_args=", ".join(x),
        located=located,
        said=["tiles", "head"] + ["tile"] * bool(means) + ["which"] * (several and bool(means)),
        words_of_box=[_words(spec, x, readers, side) for side in range(program.boxes)],
        leave_words=[_leave_words(len(readers), program.boxes, side) for side in range(program.boxes)],
        note_sets=len(readers),
        note_at="k_at" if len(readers) == 1 else "(k_at * 2 + wg)",
        load_queries=indented(_move_queries(spec, q_views, load=True)),
        store_output=indented(_move_queries(spec, o_views, load=False)),
        store_lse=indented(_store_lse(spec)),
        outside=indented(_lies_outside(program.queries)),
    )
    arguments: list[Argument] = [*q_views, *k_views, *v_views, *o_views]
    arguments += [Argument(f"{letter}_last", "i32") for letter in "qkvo"]
    if spec.returns_lse:
        arguments.append(Argument("lse", "*fp32"))
    if spec.key_mask:
        arguments.append(Argument("key_mask", "*i1"))
    arguments += [Argument("mean_bias", "*fp32")] * bool(means) + TABLE * spec.has_head_table + WORKSPACE * merges
    arguments += [DEALT, Argument("scale_log2", "fp32")]
    slots = schedule.row_blocks * schedule.max_parts
    return Emitted(
        spec=spec,
        source=source,
        arguments=tuple(arguments),
        grid=schedule.num_sms,
        part_rows=slots * config.block_m if merges and not spec.has_head_table else 0,
        arrivals=warpgroups * schedule.row_blocks if merges else 0,
        marks=schedule.grid_tiles,
        waits=True,
        warps=4,
        maxnreg=_at_launch(registers),
    )


def _at_launch(registers: Sequence[int]) -> int:
    """Registers of a thread before they are dealt out anew: as many in all, the first consumer's as the others'."""
    return (registers[0] + sum(registers)) // (len(registers) + 1)


def _items(spec: KernelSpec, merges: bool) -> str:
    """How many items programs take as they come: tiles of the grid, then row blocks to merge."""
    if not spec.has_head_table:
        return "ITEMS" if merges else "GRID_TILES"
    return f"share[0] * {'(TILES_PER_HEAD + ROW_BLOCKS_PER_HEAD)' if merges else 'TILES_PER_HEAD'}"


def _key_views(
    key_tiles: Sequence[KeyTiles], means: dict[str, MeanTiles], letter: str, spec: KernelSpec
) -> list[ViewArgument]:
    """The views of the tokens, and after them those of the means."""
    found = {(tiles.view, tiles.box): None for tiles in key_tiles}
    made = list[ViewArgument]()
    for view, box in found:
        shared = [other for seen, other in found if seen == view]
        name = "x".join(str(size) for size, _ in view.axes) if len(view.axes) > 1 else "flat"
        stem = f"tokens_{name}" + (f"_by_{times(box)}" if len(shared) > 1 else "")
        made.append(_view(letter, stem, view, box, spec))
    for kind, tiles in means.items():
        box = (tiles.block // spec.program.boxes,)
        made.append(_view(letter, f"means_{kind}", tiles.view, box, spec, f"{letter}_means_{kind}"))
    return made


def _passes_end(program: TileProgram) -> bool:
    """Whether the last key tile of global queries has a box beyond all tokens."""
    return program.units * program.boxes > int(program.everything.count)


def _group_of(programs: Sequence[TileProgram]) -> Iterator[str]:
    coords = [list(map(source_of, program.queries.coords(_TILE))) for program in programs]
    if all(each == coords[0] for each in coords):
        yield f"return {', '.join(coords[0])}" if coords[0] else "return 0"
        return
    names = [str(c) for c in programs[0].coords]
    yield from by_pattern([[f"{c} = {x}" for c, x in zip(names, each, strict=True)] for each in coords])
    yield f"return {', '.join(names)}"


def _counted(counts: Sequence[sympy.Expr]) -> Iterator[str]:
    """A number for each pattern, in the coordinates of the group, or of the pair."""
    edges = [Names([count], "edge") for count in counts]
    spelled = [names.source_of(count) for names, count in zip(edges, counts, strict=True)]
    if len(counts) == 1:
        yield from (*edges[0].lines(), f"return {spelled[0]}")
        return
    yield from by_pattern([[*names.lines(), f"count = {text}"] for names, text in zip(edges, spelled, strict=True)])
    yield "return count"


def _mean_tiles(spec: KernelSpec, program: TileProgram) -> list[str]:
    """How many of a query tile's key tiles hold means, and where their biases begin."""
    first = spec.first_mean(program.means.kind) if program.means is not None else 0
    return [f"count = {program.mean_tiles}", f"first = {first}"]


def _words(spec: KernelSpec, x: Sequence[str], readers: Sequence[Sequence[str]], side: int) -> list[str]:
    """What is noted of a box of keys, for each of the groups that read it and differ in what they see."""
    lines = list[str]()
    for number, mine in enumerate(readers):
        places = x if spec.key_mask or mine else []
        args = ", ".join(["note", *mine, *places, *["mask"] * spec.key_mask])
        lines.append(f"{_seen(number, side)} = visible_words({args})")
    return lines


def _seen(reader: int, side: int) -> str:
    """What the words of a box that a reader sees are called."""
    return f"words{side or ''}" if reader == 0 else f"others_words{side or ''}"


def _leave_words(readers: int, boxes: int, side: int) -> list[str]:
    """Beside a stage lie the words of each reader, and of a reader those of each box."""
    lines = list[str]()
    for number in range(readers):
        place = "stage" if readers == 1 else f"(stage * {readers} + {number})"
        place = place if boxes == 1 else f"{place} * {boxes} + {side}"
        lines.append(f"notes.index({place}).store({_seen(number, side)})")
    return lines


def _query_views(letter: str, spec: KernelSpec) -> list[ViewArgument]:
    """The grid's views, the whole grid first, and those of the runs of global tokens."""
    program = spec.program
    share = program.queries.share
    made = [_view(letter, _stem(spec, first), view, share, spec) for first, view in program.queries.views()]
    for number, (start, size) in enumerate(program.global_runs):
        made.append(_view(letter, f"global{number}", View(start, ((size, 1),)), (SHARE,), spec))
    return made


def _stem(spec: KernelSpec, first: Sequence[int]) -> str:
    """What a view of the query grid is called: the boxes that come first along some axes have views of their own."""
    return "_first".join(["grid" if spec.program.coords else "tokens", *map(str, first)])


def _view(letter: str, stem: str, view: View, box: tuple[int, ...], spec: KernelSpec, tensor: str = "") -> ViewArgument:
    """A view and its box; of two boxes that make a tile 64 channels at a time lie together in shared memory."""
    channels = 64 if letter in "kv" and spec.program.boxes > 1 else spec.head_block
    element = {"bfloat16": "bf16", "float16": "fp16"}[spec.dtype]
    signature = f"tensordesc<{element}{[1, *box, channels]}>"
    return ViewArgument(
        f"{letter}_{stem}", signature, tensor=tensor or letter, view=view, box=box, channels=channels, stem=stem
    )


def _locate(spec: KernelSpec, split: TileProgram | None, views: Sequence[ViewArgument], noted: bool) -> Iterator[str]:
    """The index map: view and coordinates of boxes of keys, region by region, of another box in each lane.

    split: the program, where there are rows of global queries.
    """
    names = _located(views, noted)
    yield f"{', '.join(names)} = {', '.join(['0 * i'] * len(names))}"
    yield from by_pattern([_regions(program, views, spec, noted) for program in spec.programs])
    if split is not None:
        everything = _place(split.everything, _INDEX, views, Names([], "edge"), spec, noted, _passes_end(split))
        yield from (f"{name} = gl.where(is_global, {everything.get(name, 0)}, {name})" for name in names)
    yield f"return {', '.join(names)}"


def _located(views: Sequence[ViewArgument], noted: bool) -> list[str]:
    """What says where a box is: its view, the coordinates of its first token, and a note."""
    return ["view", *_X[: max(len(view.box) for view in views)], *["note"] * noted]


def _regions(program: TileProgram, views: Sequence[ViewArgument], spec: KernelSpec, noted: bool) -> list[str]:
    """What a pattern's query tile reads: names that are needed, and what the lanes of each region find."""
    spans = [span for tiles in program.keys for span in tiles.region.spans]
    edges = Names([end for span in spans for end in (span.start, span.stop)], "edge")
    lines, end, named_end = list(edges.lines()), sympy.Integer(0), "0"
    read = [*program.keys, *([program.means] if program.means is not None else [])]
    for at, tiles in enumerate(read):
        first, end, named, is_last = end, end + tiles.count, named_end, at + 1 == len(read)
        if not is_last:
            named_end = source_of(end) if end.is_Integer else f"end{at}"
            if not end.is_Integer:
                count = edges.source_of(tiles.count)
                lines.append(f"{named_end} = {count}" if named == "0" else f"{named_end} = {named} + {count}")
        if isinstance(tiles, MeanTiles):
            found = _place_means(tiles, _INDEX if first == 0 else _J, views, program.boxes)
        else:
            found = _place(tiles, _INDEX if first == 0 else _J, views, edges, spec, noted)
        found = {name: value for name, value in found.items() if value != "0"}
        if first != 0:
            lines.append(f"j = gl.maximum(i - {named}, 0)")
        if len(read) == 1:
            lines += (f"{name} += {value}" for name, value in found.items())
            continue
        after, before = f"i >= {named}", f"i < {named_end}"
        lines.append(f"here = {before if first == 0 else after if is_last else f'({after}) & ({before})'}")
        lines += (f"{name} = gl.where(here, {value}, {name})" for name, value in found.items())
    return lines


def _place(
    tiles: KeyTiles,
    index: sympy.Symbol,
    views: Sequence[ViewArgument],
    edges: Names,
    spec: KernelSpec,
    noted: bool,
    passes_end: bool = False,
) -> dict[str, str]:
    """View and coordinates of a box of tokens; passes_end: it may begin beyond them all."""
    number = next(at for at, view in enumerate(views) if (view.view, view.box) == (tiles.view, tiles.box))
    starts = [edges.source_of(start) for start in tiles.starts(index)]
    found = {"view": str(number)} | {f"x{axis}": start for axis, start in enumerate(starts)}
    if noted:
        found["note"] = _note(tiles, number, edges, always=spec.key_mask, passes_end=passes_end)
    return found


def _place_means(means: MeanTiles, index: sympy.Symbol, views: Sequence[ViewArgument], boxes: int) -> dict[str, str]:
    """View and coordinates of a box of means; the note is one beyond those of the views."""
    number = next(at for at, view in enumerate(views) if view.stem == f"means_{means.kind}")
    return {"view": str(number), "x0": f"{index} * {means.block // boxes}", "note": f"{len(views) + 1} << 24"}


def _branching(branches: Sequence[tuple[str, list[str]]]) -> Iterator[str]:
    """Lines under conditions, of which the last is true if no other is."""
    if len(branches) == 1:
        yield from branches[0][1]
        return
    for number, (condition, body) in enumerate(branches):
        is_last = number + 1 == len(branches)
        yield "else:" if is_last else f"{'if' if number == 0 else 'elif'} {condition}:"
        yield from indented(body)


def _note(tiles: KeyTiles, view: int, edges: Names, always: bool, passes_end: bool) -> str:
    """How many of the box's tokens along each axis the group reads, where it may not be all, or always."""
    ragged_axes = [ragged or passes_end for ragged in tiles.ragged]
    if not any(ragged_axes) and not always:
        return "0"
    stops = [edges.source_of(span.stop) for span in tiles.region.spans]
    axes = list(zip(ragged_axes, stops, tiles.box, strict=True))
    past = " | ".join(f"(x{axis} + {box} > {stop})" for axis, (ragged, stop, box) in enumerate(axes) if ragged)
    left = "gl.maximum(gl.minimum({} - x{}, {}), 0)" if passes_end else "gl.minimum({} - x{}, {})"
    counts = [
        f"({left.format(stop, axis, box)} << {8 * axis})" if ragged else f"({box} << {8 * axis})"
        for axis, (ragged, stop, box) in enumerate(axes)
    ]
    packed = f"({view + 1} << 24) | {' | '.join(counts)}".replace(" << 0)", ")")
    return packed if always else f"gl.where({past}, {packed}, 0)"


def _copy_box(views: Sequence[ViewArgument]) -> Iterator[str]:
    """A copy from the view that a box of keys lies in."""
    dst = "boxes.index((stage * PARTS + part) * BOXES + side)"
    branches = list[tuple[str, list[str]]]()
    for number, view in enumerate(views):
        outer, last = ("outer", "last + ") if view.tensor in "kv" else ("mean_outer", "")
        at = ", ".join([outer, *_X[: len(view.box)], f"{last}part * CHANNELS"])
        copy = f"async_load({view.stem}, [{at}], bar, {_as_box_of(view.stem, dst)})"
        branches.append((f"view == {number}", ["for part in gl.static_range(PARTS):", f"    {copy}"]))
    yield from _branching(branches)


def _visible_words(
    key_tiles: Sequence[KeyTiles], views: Sequence[ViewArgument], spec: KernelSpec, passes_end: bool
) -> Iterator[str]:
    """Which of a box's columns lie inside its region, view by view, and which the key mask leaves."""
    ragged = {(tiles.view, tiles.box) for tiles in key_tiles if any(tiles.ragged)}
    if passes_end:
        ragged.add((spec.program.everything.view, spec.program.everything.box))
    if spec.key_mask:
        yield "token = column"
    for number, view in enumerate(views):
        if view.tensor not in "kv" or not (spec.key_mask or (view.view, view.box) in ragged):
            continue
        digits = _digits(view.box)
        counts = ("(note & 255)", "((note >> 8) & 255)", "((note >> 16) & 255)")
        axes = list(zip(digits, counts, view.box, view.view.axes, strict=False))
        yield f"if (note >> 24) == {number + 1}:"
        yield f"    visible = {' & '.join(f'({digit} < {count})' for digit, count, side, _ in axes if side > 1)}"
        if spec.key_mask:
            places = [f"(x{axis} + {digit}) * {stride}" for axis, (digit, _, _, (_, stride)) in enumerate(axes)]
            yield f"    token = {view.view.origin} + {' + '.join(places)}"
    if spec.mean_rows:
        yield f"if (note >> 24) == {len(views) + 1}:"
        yield from indented(by_pattern([_visible_means(program) for program in spec.programs]))
    if spec.key_mask:
        has_tokens = f"visible & ((note >> 24) <= {len(views)})" if spec.mean_rows else "visible"
        other = int(bool(spec.mean_rows))
        yield f"visible = visible & (gl.load(mask + token, mask={has_tokens}, other={other}) != 0)"


def _visible_means(program: TileProgram) -> list[str] | None:
    if program.means is None:
        return None
    lines = reads_groups(program.means, program.coords, "number")
    return ["number = x0 + column", *lines, f"visible = (number < {program.means.rows}) & (reads == 0)"]


def _digits(box: Sequence[int], counter: str = "column") -> list[str]:
    """Coordinates within a box of what a counter runs over, a tile's columns for one."""
    digits = list[str]()
    for axis, side in enumerate(box):
        inner = math.prod(box[axis + 1 :])
        digit = counter if inner == 1 else f"{counter} // {inner}"
        digits.append("0" if side == 1 else digit if axis == 0 else f"{digit} % {side}")
    return digits


def _by_run(program: TileProgram, of_run: Callable[[int, str], list[str]], of_grid: list[str]) -> Iterator[str]:
    """A branch for each run of global queries, by its number and the source of a tile's place in it, and the grid's."""
    first = 0
    for number, blocks in enumerate(program.row_blocks):
        is_last = number + 1 == len(program.row_blocks)
        condition = "is_global" if is_last else f"is_global & (tile < {first + blocks})"
        yield f"{'if' if number == 0 else 'elif'} {condition}:"
        yield from indented(of_run(number, f"(tile - {first})" if first else "tile"))
        first += blocks
    if program.row_blocks:
        yield "else:"
    yield from indented(of_grid) if program.row_blocks else of_grid


def _move_queries(spec: KernelSpec, views: Sequence[ViewArgument], load: bool) -> Iterator[str]:
    """Copy a warpgroup's share of a query tile between device and shared memory."""
    queries = spec.program.queries
    of_grid, runs = views[: len(queries.views())], views[len(queries.views()) :]

    def of_run(number: int, tile: str) -> list[str]:
        return [_move(runs[number].name, [f"{tile} * BLOCK_M + wg * WG_M"], load)]

    return _by_run(spec.program, of_run, list(_move_grid(queries, of_grid, load)))


def _move_grid(queries: QueryTiles, views: Sequence[ViewArgument], load: bool) -> Iterator[str]:
    """The copy engine writes no box that begins before its view: such a box begins with the first view's own tokens."""
    starts, within = [source_of(start) for start in queries.starts(_TILE)], _within_tile(queries)
    if len(views) == 1:
        yield _move(views[0].name, [start + more for start, more in zip(starts, within, strict=True)], load)
        return
    yield from (f"at{axis} = {start}" for axis, start in enumerate(starts))
    choices = sorted(zip(queries.views(), views, strict=True), key=lambda choice: -len(choice[0][0]))
    for number, ((first, _), view) in enumerate(choices):
        before = [f"at{axis} < 0" for axis in first]
        condition = before[0] if len(before) == 1 else " & ".join(f"({test})" for test in before)
        yield f"{'if' if number == 0 else 'elif'} {condition}:" if first else "else:"
        at = [("0" if axis in first else f"at{axis}") + more for axis, more in enumerate(within)]
        yield f"    {_move(view.name, at, load)}"


def _within_tile(queries: QueryTiles) -> list[str]:
    """What a warpgroup's share adds to the start of a tile along each axis."""
    along = zip(_digits(queries.shares, "wg"), queries.shares, queries.share, strict=True)
    return [f" + {digit} * {side}" if count > 1 else "" for digit, count, side in along]


def _lies_outside(queries: QueryTiles) -> Iterator[str]:
    """A warpgroup's share may begin where the grid has ended, or the group that is cut at the grid's beginning."""
    tests = list[str]()
    along = zip(queries.starts(_TILE), _within_tile(queries), queries.shares_empty, strict=True)
    for axis, (start, more, may_be_empty) in enumerate(along):
        if not may_be_empty:
            continue
        yield f"at{axis} = {source_of(start)}"
        size, first = queries.view.axes[axis][0], queries.first_sides[axis]
        tests.append(f"(at{axis}{more} >= {size})")
        if first:
            tests.append(f"((at{axis} < 0) & ({more.removeprefix(' + ')} >= {first}))")
    if tests:
        yield f"return {' | '.join(tests)}"


def _move(name: str, starts: Sequence[str], load: bool) -> str:
    at = ", ".join(starts)
    if load:
        return f"async_load({name}, [outer, {at}, last], bar, {_as_box_of(name, 'dst')})"
    return f"async_store({name}, [outer, {at}, last], {_as_box_of(name, 'src')})"


def _as_box_of(view: str, shared: str) -> str:
    """Shared memory in the shape that a view is copied in."""
    return f"reinterpret({shared}, {view}.dtype, {view}.block_type.shape, {view}.layout)"


def _store_lse(spec: KernelSpec) -> Iterator[str]:
    program = spec.program

    def of_run(number: int, tile: str) -> list[str]:
        start, size = program.global_runs[number]
        return [
            f"place = {tile} * BLOCK_M + row",
            f"gl.store(lse + {start} + place, values, mask=place < {size})",
        ]

    return _by_run(program, of_run, list(_store_grid_lse(program.queries)))


def _store_grid_lse(queries: QueryTiles) -> Iterator[str]:
    # Rows count from 0 within a warpgroup's share, whose own start is added along the axes that were cut.
    places, inside = list[str](), list[str]()
    starts, within = [source_of(start) for start in queries.starts(_TILE)], _within_tile(queries)
    digits = _digits(queries.share, "row % WG_M")
    for axis, (start, more, digit, (size, stride), first) in enumerate(
        zip(starts, within, digits, queries.view.axes, queries.first_sides, strict=True)
    ):
        begins = f"max({start}, 0)" if first else start
        yield f"at{axis} = {begins}{more} + {digit}"
        places.append(f"at{axis} * {stride}")
        inside.append(f"(at{axis} < gl.where({start} < 0, {first}, {size}))" if first else f"(at{axis} < {size})")
    origin = queries.view.origin
    yield f"gl.store(lse + {origin} + {' + '.join(places)}, values, mask={' & '.join(inside)})"
