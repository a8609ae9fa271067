"""Emission for every target: a plain Triton kernel, one program a query tile, one loop for each region that it reads.

Keys are read where the model has them, each row by its own pointer: nothing is permuted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import sympy

from codegen.emitted import TABLE, Argument, Emitted, by_pattern, header, indented, reads_groups, render
from codegen.printing import Names, source_of
from codegen.spec import DTYPES, SLOT_BITS, KernelSpec
from codegen.table import HEADER
from codegen.tiles import KeyTiles, MeanTiles, TileProgram

_I = sympy.Symbol("i", integer=True, nonnegative=True)
_PRECISION = {"float32": ', input_precision="tf32x3"', "tf32": ', input_precision="tf32"'}
_TILE = sympy.Symbol("tile", integer=True, nonnegative=True)


def emit_triton(spec: KernelSpec) -> Emitted:
    """Source and arguments of the kernel."""
    program, config = spec.program, spec.config
    heads = spec.batch * spec.heads
    row_blocks, units = heads * sum(program.row_blocks), int(program.everything.count)
    split = bool(row_blocks)
    parts = _parts(spec, units) if split else 1
    edges = [_edges(each, number) for number, each in enumerate(spec.programs)]
    means = {f"{letter}_means_{kind}": rows for kind, rows in spec.mean_rows.items() for letter in "kv"}
    mine = ["which"] * (len(spec.programs) > 1) + [*means, "mean_bias"] * bool(means)
    strides = [f"{letter}_{axis}" for letter in "qkvo" for axis in ("batch", "head", "token")]
    source = render(
        "triton.py.jinja",
        title=f"Attention {spec.pattern} over {spec.layout}, for SM{spec.arch}.",
        header=header(spec),
        spec=spec,
        program=program,
        means=means,
        mine="".join(f"{name}, " for name in mine),
        table_header=HEADER,
        slot_bits=SLOT_BITS,
        block_m=config.block_m,
        block_n=config.block_n,
        dtype_bytes=DTYPES[spec.dtype],
        split=split,
        units=units,
        parts=parts,
        row_blocks=row_blocks,
        strides=strides,
        precision=_PRECISION.get(spec.dtype, ""),
        extra="lse, " * spec.returns_lse + "key_mask, " * spec.key_mask,
        query_rows=indented(_query_rows(spec, edges)),
        global_rows=indented(_global_rows(spec)) if split else [],
        key_loops=indented(_key_loops(spec, edges)),
        global_step=list(_step(program.everything, spec, Names([], "edge"))),
    )
    element = {"bfloat16": "*bf16", "float16": "*fp16"}.get(spec.dtype, "*fp32")
    arguments = [Argument(letter, element, 16) for letter in "qkvo"]
    arguments += [Argument("lse", "*fp32")] * spec.returns_lse + [Argument("key_mask", "*i1")] * spec.key_mask
    arguments += [Argument(name, element, 16) for name in means]
    arguments += [Argument("mean_bias", "*fp32")] * bool(means) + TABLE * spec.tabled
    if split:
        arguments += [Argument("parts", "*fp32"), Argument("part_lse", "*fp32"), Argument("arrivals", "*i32")]
    arguments += [Argument(stride, "i64", 16 // DTYPES[spec.dtype]) for stride in strides]
    arguments.append(Argument("scale_log2", "fp32"))
    return Emitted(
        spec=spec,
        source=source,
        arguments=tuple(arguments),
        grid=row_blocks * parts + heads * program.queries.count,
        part_rows=row_blocks * parts * config.block_m if split else 0,
        arrivals=row_blocks,
        warps=config.warps,
        maxnreg=None,
    )


def _parts(spec: KernelSpec, units: int) -> int:
    """Programs that share a row of global queries, so that none takes much longer than a tile of the grid."""
    read = sum(program.average_tiles_read for program in spec.programs) / len(spec.programs)
    return max(1, min(64, round(units / max(1.0, read))))


def _edges(program: TileProgram, number: int) -> Names:
    """Names for the ends of regions and groups that the kernel of a grid tile uses more than once."""
    spans = [span for tiles in program.keys for span in tiles.region.spans]
    ends = [end for span in spans for end in (span.start, span.stop)]
    if program.means is not None:
        boxes = program.means.read(program.coords)
        ends += [end for box in boxes for ranges in box for along in ranges for end in along]
    return Names([*_query_stops(program), *ends], f"edge{number}_" if number else "edge")


def _query_stops(program: TileProgram) -> Sequence[sympy.Expr]:
    """Where the queries of a tile end: with their group, or with the grid where no border cuts a tile."""
    queries = program.queries
    if not program.coords or queries.holds_whole_boxes:
        return [sympy.Integer(size) for size, _ in queries.view.axes]
    return queries.stops(program.coords)


def _query_rows(spec: KernelSpec, edges: Sequence[Names]) -> Iterator[str]:
    """Group, coordinates and sequence indices of a tile's queries."""
    queries, coords = spec.program.queries, spec.program.coords
    yield from by_pattern(
        [
            [f"{c} = {source_of(expr)}" for c, expr in zip(coords, program.queries.coords(_TILE), strict=False)]
            for program in spec.programs
        ]
    )
    yield from (line for each in edges for line in each.lines())
    stops = _query_stops(spec.program)
    starts = [edges[0].source_of(start) for start in queries.starts(_TILE)]
    yield from _tokens(starts, queries.box, queries.view.origin, queries.view.axes, "row", "tokens")
    inside = [f"(q{axis} >= 0)" for axis, before in enumerate(queries.begins_before) if before]
    inside += [
        f"(q{axis} < {edges[0].source_of(stop)})"
        for axis, (passes, stop) in enumerate(zip(queries.may_pass, stops, strict=True))
        if passes
    ]
    yield f"is_query = {' & '.join(inside) or 'row >= 0'}"


def _tokens(
    starts: Sequence[str],
    box: Sequence[int],
    origin: int,
    axes: Sequence[tuple[int, int]],
    counter: str,
    name: str,
) -> Iterator[str]:
    """Coordinates and sequence indices of the tokens of a box, which a counter runs over."""
    letter = "q" if counter == "row" else "x"
    places = list[str]()
    for axis, (start, (_, stride)) in enumerate(zip(starts, axes, strict=True)):
        inner = math.prod(box[axis + 1 :])
        digit = counter if inner == 1 else f"{counter} // {inner}"
        digit = digit if axis == 0 else f"{digit} % {box[axis]}"
        yield f"{letter}{axis} = {start} + {digit}"
        places.append(f"{letter}{axis}" if stride == 1 else f"{letter}{axis} * {stride}")
    yield f"{name} = {' + '.join([str(origin)] * bool(origin) + places)}"


def _global_rows(spec: KernelSpec) -> Iterator[str]:
    """Sequence indices of a tile of global queries, run by run."""
    first = 0
    yield "start, size, at = 0, 0, 0"
    for number, ((start, size), blocks) in enumerate(
        zip(spec.program.global_runs, spec.program.row_blocks, strict=True)
    ):
        is_last = number + 1 == len(spec.program.global_runs)
        condition = "else:" if is_last and number else f"if tile < {first + blocks}:"
        yield condition
        yield f"    start, size, at = {start}, {size}, tile - {first}"
        first += blocks
    yield "tokens = start + at * BLOCK_M + row"
    yield "is_query = at * BLOCK_M + row < size"


def _key_loops(spec: KernelSpec, edges: Sequence[Names]) -> Iterator[str]:
    """The loops of all patterns; those of the patterns that it is not have no iterations."""
    for number, (program, names) in enumerate(zip(spec.programs, edges, strict=True)):

        def times(count: str, number: int = number) -> str:
            return f"tl.where(which == {number}, {count}, 0)" if len(spec.programs) > 1 else count

        for tiles in program.keys:
            yield f"for i in range({times(names.source_of(tiles.count))}):"
            yield from indented(_step(tiles, spec, names))
        if program.means is not None:
            yield f"for i in range({times(str(program.means.count))}):"
            yield from indented(_mean_step(program.means, spec, program.coords, names))


def _mean_step(means: MeanTiles, spec: KernelSpec, coords: Sequence[sympy.Symbol], edges: Names) -> Iterator[str]:
    """Attend to the means of a tile of groups, but for those that are read one by one."""
    yield "number = i * BLOCK_N + column"
    yield from reads_groups(means, coords, edges, "number")
    yield f"inside = (number < {means.rows}) & ~reads"
    yield f"bias = tl.load(mean_bias + {spec.first_mean(means.kind)} + number, mask=inside, other=float('-inf'))"
    yield f"keys_here = load_rows(k_means_{means.kind}, number, HEAD_DIM, inside, True)"
    yield f"values = load_rows(v_means_{means.kind}, number, HEAD_DIM, inside, True)"
    yield "acc, l, m = attend_means(queries, keys_here, values, acc, l, m, bias, scale_log2)"


def _step(tiles: KeyTiles, spec: KernelSpec, edges: Names) -> Iterator[str]:
    """Read one tile of keys and values and attend to them."""
    stops = [edges.source_of(span.stop) for span in tiles.region.spans]
    starts = [edges.source_of(start) for start in tiles.starts(_I)]
    yield from _tokens(starts, tiles.box, tiles.view.origin, tiles.view.axes, "column", "keys")
    inside = [f"(x{axis} < {stop})" for axis, stop in enumerate(stops) if tiles.ragged[axis]]
    is_masked = bool(inside) or spec.key_mask
    yield f"inside = {' & '.join(inside) or 'column >= 0'}"
    yield f"keys_here = load_rows(k, keys, k_token, inside, {bool(inside)})"
    yield f"values = load_rows(v, keys, v_token, inside, {bool(inside)})"
    if spec.key_mask:
        yield "inside = inside & (tl.load(key_mask + keys, mask=inside, other=0) != 0)"
    yield f"acc, l, m = attend(queries, keys_here, values, acc, l, m, inside, scale_log2, {is_masked})"
