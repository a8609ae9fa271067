"""Emission for every target: a plain Triton kernel, one program a query tile, one loop for each region that it reads.

Keys are read where the model has them, each row by its own pointer: nothing is permuted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import sympy

from codegen.emitted import GATE, Argument, Emitted, header, indented, render
from codegen.printing import Names, source_of
from codegen.spec import DTYPES, KernelSpec
from codegen.tiles import KeyTiles

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
    edges = _edges(spec)
    strides = [f"{letter}_{axis}" for letter in "qkvo" for axis in ("batch", "head", "token")]
    source = render(
        "triton.py.jinja",
        title=f"Attention {spec.pattern} over {spec.layout}, for SM{spec.arch}.",
        header=header(spec),
        spec=spec,
        program=program,
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
    arguments += GATE if spec.gated else []
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
    return max(1, min(64, round(units / max(1.0, spec.program.mean_tiles_read))))


def _edges(spec: KernelSpec) -> Names:
    """Names for the ends of regions and groups that the kernel of a grid tile uses more than once."""
    queries, coords = spec.program.queries, spec.program.coords
    spans = [span for tiles in spec.program.keys for span in tiles.region.spans]
    stops = queries.stops(coords) if coords else ()
    return Names([*stops, *(end for span in spans for end in (span.start, span.stop))], "edge")


def _query_rows(spec: KernelSpec, edges: Names) -> Iterator[str]:
    """Group, coordinates and sequence indices of a tile's queries."""
    queries, coords = spec.program.queries, spec.program.coords
    for c, expr in zip(coords, queries.coords(_TILE), strict=False):
        yield f"{c} = {source_of(expr)}"
    yield from edges.lines()
    stops = queries.stops(coords) if coords else [sympy.Integer(spec.queries)]
    starts = [edges.source_of(start) for start in queries.starts(_TILE)]
    yield from _tokens(starts, queries.box, queries.view.origin, queries.view.axes, "row", "tokens")
    inside = [f"(q{axis} >= 0)" for axis, before in enumerate(queries.begins_before) if before]
    inside += [
        f"(q{axis} < {edges.source_of(stop)})"
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


def _key_loops(spec: KernelSpec, edges: Names) -> Iterator[str]:
    for tiles in spec.program.keys:
        yield f"for i in range({edges.source_of(tiles.count)}):"
        yield from (f"    {line}" for line in _step(tiles, spec, edges))


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
