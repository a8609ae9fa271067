"""Emission for every target: a plain Triton kernel, one program a query tile, one loop for each region that it reads.

Keys are read where the model has them, each row by its own pointer: nothing is permuted.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import sympy

from planner.codegen.emit.kernel_source import box_tokens, by_pattern, header, indented, reads_groups, render
from planner.codegen.spec.body import BODIES, KernelBody
from planner.codegen.spec.config import KernelConfig
from planner.codegen.spec.emitted import TABLE, WORKSPACE, Argument, Emitted, pointer_argument, stride_argument
from planner.codegen.spec.head_table import HEADER
from planner.codegen.spec.kernel_spec import KernelSpec
from planner.codegen.spec.problem import SLOT_BITS, Problem
from planner.codegen.tiling.boxes import View
from planner.codegen.tiling.key_source import LIST, LISTS, ListedTiles, list_of
from planner.codegen.tiling.key_tiles import KeyTiles
from planner.codegen.tiling.program import TileProgram
from planner.codegen.tiling.sympy_source import Names, source_of
from planner.patterns.arithmetic import Number
from planner.shapes import times

_I = sympy.Symbol("i", integer=True, nonnegative=True)
_TILE = sympy.Symbol("tile", integer=True, nonnegative=True)


class TritonBody(KernelBody):
    """A CTA for each query tile, a loop for each region: it runs everywhere, and reads rows by pointers."""

    name, order, reads_lists = "triton", 30, True

    def why_not(self, config: KernelConfig, problem: Problem) -> str | None:
        q = problem.dtypes.q
        for name, dtype in (("keys", problem.dtypes.k), ("values", problem.dtypes.v)):
            if not q.holds(dtype):
                return f"{name} of {dtype.name} would be rounded to {q.name}, which queries are multiplied as"
        if problem.scales and problem.mean_rows:
            return "means of groups have no scales"
        groups = {pattern.group for pattern in problem.grouped}
        if len(groups) <= 1 or all(tiles.holds_whole_boxes for tiles in problem.query_tiles(config.block_m)):
            return None
        spelled = " and ".join(sorted(map(times, groups)))
        return f"groups of {spelled} are not made of the same whole boxes of {config.block_m} tokens"

    def candidates(self, problem: Problem) -> Iterator[KernelConfig]:
        """Yield configs, the largest tile first.

        A warp holds at most 64 elements of the output a thread, half of that where float32 is split into three
        products: more spill (bench/RESULTS.md, kernels on other targets).
        """
        tokens = min((math.prod(pattern.group) for pattern in problem.grouped), default=128)
        held = 1024 if problem.dtypes.q.products > 1 else 2048  # elements of the output that a warp holds
        rows = min(128, max(16, 1 << (tokens - 1).bit_length()))
        for block_m in (m for m in (128, 64, 32, 16) if m <= rows):
            warps = max(4, block_m * problem.head_block // held)
            for block_n, stages in itertools.product((64, 32, 16), (3, 2, 1) if warps <= 8 else ()):
                yield KernelConfig(self.name, block_m, block_n, warps, stages)

    def emit(self, spec: KernelSpec) -> Emitted:
        return emit_triton(spec)

    def shared_bytes(self, config: KernelConfig, problem: Problem) -> int:
        """Return at least as many bytes as the compiler uses for queries, and for keys and values in flight.

        Float32, multiplied in three products, takes up to half as much again.
        """
        q, k, v = problem.dtypes.q, problem.dtypes.k, problem.dtypes.v
        channel = config.stages * config.block_n * (k.bytes + v.bytes) + config.block_m * q.bytes
        return channel * problem.head_block * (3 if q.products > 1 else 2) // 2 + 2048


def emit_triton(spec: KernelSpec) -> Emitted:
    """Emit the kernel of a spec whose body is ``triton``."""
    program, config, q = spec.program, spec.config, spec.dtypes.q
    heads = spec.batch * spec.heads
    row_blocks, iterations = heads * sum(program.row_blocks), program.iterations
    has_global_rows = bool(row_blocks)
    splits = _splits(spec, iterations) if has_global_rows else 1
    several = len(spec.programs) > 1
    edges = Names(_query_stops(program), "edge") if several else _edges(program)
    means = {f"{letter}_means_{kind}": rows for kind, rows in spec.mean_rows.items() for letter in "kv"}
    mine = ["which"] * several + [*means, "mean_bias"] * bool(means) + [LIST] * spec.has_key_lists
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
        has_global_rows=has_global_rows,
        iterations=iterations,
        splits=splits,
        row_blocks=row_blocks,
        strides=strides,
        v_scale=", v_scale" * ("v" in spec.scales),
        precision=f', input_precision="{q.multiplied_as}"' if q.is_split else "",
        extra="lse, " * spec.returns_lse + "key_mask, " * spec.key_mask + "v_scale, " * ("v" in spec.scales),
        query_rows=indented(_query_rows(spec, edges)),
        global_rows=indented(_global_rows(spec)) if has_global_rows else [],
        key_loops=indented(_shared_loops(spec) if several else _key_loops(spec, edges)),
        global_step=list(_global_step(spec)),
    )
    arguments = [pointer_argument(letter, spec.dtypes) for letter in "qkvo"]
    arguments += [Argument(f"{letter}_scale", "*fp32") for letter in spec.scales]
    arguments += [Argument("lse", "*fp32")] * spec.returns_lse + [Argument("key_mask", "*i1")] * spec.key_mask
    arguments += [Argument(LISTS, "*i32")] * spec.has_key_lists
    arguments += [pointer_argument(name, spec.dtypes) for name in means]
    arguments += (
        [Argument("mean_bias", "*fp32")] * bool(means) + TABLE * spec.has_head_table + WORKSPACE * has_global_rows
    )
    arguments += [stride_argument(stride, spec.dtypes) for stride in strides]
    arguments.append(Argument("scale_log2", "fp32"))
    return Emitted(
        spec=spec,
        source=source,
        arguments=tuple(arguments),
        grid=row_blocks * splits + heads * program.queries.count,
        partial_rows=row_blocks * splits * config.block_m if has_global_rows else 0,
        retry_flags=0,
        waits=False,
        arrivals=row_blocks,
        warps=config.warps,
        maxnreg=None,
    )


def _splits(spec: KernelSpec, iterations: int) -> int:
    """Choose how many splits a row block of global queries has: none takes much longer than a tile of the grid."""
    read = sum(program.average_tiles_read for program in spec.programs) / len(spec.programs)
    return max(1, min(64, round(iterations / max(1.0, read))))


def _edges(program: TileProgram) -> Names:
    """Name the ends of regions and groups that the kernel of a grid tile uses more than once."""
    return Names([*_query_stops(program), *_ends(program)], "edge")


def _ends(program: TileProgram) -> list[Number]:
    return [end for tiles in program.keys if tiles is not program.listed for end in tiles.region.ends]


def _query_stops(program: TileProgram) -> Sequence[sympy.Expr]:
    """Return where the queries of a tile end: with their group, or with the grid where no border cuts a tile."""
    queries = program.queries
    if not program.coords or queries.holds_whole_boxes:
        return [sympy.Integer(size) for size, _ in queries.view.axes]
    return queries.stops(program.coords)


def _query_rows(spec: KernelSpec, edges: Names) -> Iterator[str]:
    """Yield lines for the group, coordinates and sequence indices of a tile's queries."""
    queries, coords = spec.program.queries, spec.program.coords
    yield from by_pattern(
        [
            [f"{c} = {source_of(expr)}" for c, expr in zip(coords, program.queries.coords(_TILE), strict=False)]
            for program in spec.programs
        ]
    )
    yield from edges.lines()
    stops = _query_stops(spec.program)
    starts = [edges.source_of(start) for start in queries.starts(_TILE)]
    yield from box_tokens(starts, queries.box, queries.view.origin, queries.view.axes, "row", "tokens")
    inside = [f"(q{axis} >= 0)" for axis, before in enumerate(queries.begins_before) if before]
    inside += [
        f"(q{axis} < {edges.source_of(stop)})"
        for axis, (passes, stop) in enumerate(zip(queries.may_pass, stops, strict=True))
        if passes
    ]
    yield f"is_query = {' & '.join(inside) or 'row >= 0'}"


def _global_rows(spec: KernelSpec) -> Iterator[str]:
    """Yield lines for the sequence indices of a tile of global queries, run by run."""
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
    """Yield a loop for each region of the pattern, and one for the means."""
    for tiles in spec.program.keys:
        if isinstance(tiles, ListedTiles):
            yield from _listed_loop(tiles, spec)
            continue
        stops = [edges.source_of(span.stop) for span in tiles.region.spans]
        starts = [edges.source_of(start) for start in tiles.starts(_I)]
        yield f"for i in range({edges.source_of(tiles.count)}):"
        yield from indented(_step(tiles.view, tiles.box, tiles.ragged, starts, stops, spec))
    if spec.program.means is not None:
        yield f"for i in range({spec.program.mean_tiles}):"
        yield from indented(_mean_step(spec.program.means.kind, spec))


def _listed_loop(tiles: ListedTiles, spec: KernelSpec) -> Iterator[str]:
    """Write the loop over the boxes of the key groups that the query group's list names."""
    yield f"{LIST} += {list_of(spec.program.coords, tiles)}"
    yield from tiles.bound(_loaded)
    yield f"for i in range({source_of(tiles.count)}):"
    edges = Names(tiles.region.ends, "listed_edge")
    stops = [edges.source_of(span.stop) for span in tiles.region.spans]
    starts = [edges.source_of(start) for start in tiles.starts(_I)]
    yield from indented([*tiles.lookup(_I, _loaded), *edges.lines()])
    yield from indented(_step(tiles.view, tiles.box, tiles.ragged, starts, stops, spec))


def _loaded(pointer: str) -> str:
    return f"tl.load({pointer})"


def _shared_loops(spec: KernelSpec) -> Iterator[str]:
    """Yield a loop for each box and view that any of several patterns reads, within the bounds of the current one."""
    loops = _loops(spec.programs)
    yield from by_pattern([list(_bounds(spec, number, loops)) for number in range(len(spec.programs))])
    for number, loop in enumerate(loops):
        yield f"for i in range(tiles{number}):"
        axes = range(len(loop.box))
        stops = [f"stop{number}_{axis}" for axis in axes]
        starts = [f"begin{number}_{axis} + {_digit(number, axis, len(loop.box))} * {loop.box[axis]}" for axis in axes]
        yield from indented(_step(loop.view, loop.box, loop.ragged, starts, stops, spec))
    for kind in spec.mean_rows:
        yield f"for i in range(means_{kind}):"
        yield from indented(_mean_step(kind, spec))


@dataclass(frozen=True)
class _Loop:
    """Tiles of one box and view, and the region that each pattern cuts into them; None where it has none."""

    view: View
    box: tuple[int, ...]
    tiles: tuple[KeyTiles | None, ...]

    @property
    def ragged(self) -> tuple[bool, ...]:
        """Along which axes a box may hold tokens outside some pattern's region."""
        return tuple(map(any, zip(*(tiles.ragged for tiles in self.tiles if tiles is not None), strict=True)))


def _loops(programs: Sequence[TileProgram]) -> list[_Loop]:
    """List the loops; the n-th regions of one box and view, of all patterns, share one."""
    found = dict[tuple[View, tuple[int, ...], int], list[KeyTiles | None]]()
    for number, program in enumerate(programs):
        seen = Counter[tuple[View, tuple[int, ...]]]()
        for tiles in program.keys:
            place = (tiles.view, tiles.box)
            found.setdefault((*place, seen[place]), [None] * len(programs))[number] = tiles
            seen[place] += 1
    return [_Loop(view, box, tuple(tiles)) for (view, box, _), tiles in found.items()]


def _bounds(spec: KernelSpec, pattern: int, loops: Sequence[_Loop]) -> Iterator[str]:
    """Yield lines for how many tiles each loop reads under a pattern, and where its boxes begin and end."""
    program = spec.programs[pattern]
    edges = Names(_ends(program), "edge")
    yield from edges.lines()
    for number, loop in enumerate(loops):
        tiles = loop.tiles[pattern]
        yield f"tiles{number} = {edges.source_of(tiles.count) if tiles is not None else 0}"
        for axis in range(len(loop.box)):
            span = tiles.region.spans[axis] if tiles is not None else None
            yield f"begin{number}_{axis} = {edges.source_of(span.start) if span is not None else 0}"
            yield f"stop{number}_{axis} = {edges.source_of(span.stop) if span is not None else 0}"
            if axis:
                yield f"boxes{number}_{axis} = {edges.source_of(tiles.counts[axis]) if tiles is not None else 1}"
    for kind in spec.mean_rows:
        is_read = program.means is not None and program.means.kind == kind
        yield f"means_{kind} = {program.mean_tiles if is_read else 0}"


def _digit(loop: int, axis: int, axes: int) -> str:
    """Write the index of a loop's i-th box along an axis; the last axis is the fastest."""
    inner = " * ".join(f"boxes{loop}_{later}" for later in range(axis + 1, axes))
    brackets = f"({inner})" if axis + 2 < axes else inner
    digit = f"(i // {brackets})" if inner else "i"
    return f"({digit} % boxes{loop}_{axis})" if axis else digit


def _mean_step(kind: str, spec: KernelSpec) -> Iterator[str]:
    """Attend to the means of a tile of groups, but for those that are read one by one."""
    yield "number = i * BLOCK_N + column"
    yield from by_pattern(
        [
            list(reads_groups(program.means, program.coords, "number"))
            if program.means is not None and program.means.kind == kind
            else None
            for program in spec.programs
        ]
    )
    yield f"inside = (number < {spec.mean_rows[kind]}) & ~reads"
    yield f"bias = tl.load(mean_bias + {spec.first_mean(kind)} + number, mask=inside, other=float('-inf'))"
    yield from _load(spec, f"k_means_{kind}", f"v_means_{kind}", "number", ("HEAD_DIM", "HEAD_DIM"), "True")
    yield "acc, l, m = attend_means(queries, keys_here, values, acc, l, m, bias, scale_log2)"


def _step(
    view: View,
    box: Sequence[int],
    ragged: Sequence[bool],
    starts: Sequence[str],
    stops: Sequence[str],
    spec: KernelSpec,
) -> Iterator[str]:
    """Read one tile of keys and values and attend to them."""
    yield from box_tokens(starts, box, view.origin, view.axes, "column", "keys")
    inside = [f"(x{axis} < {stop})" for axis, stop in enumerate(stops) if ragged[axis]]
    is_masked = bool(inside) or spec.key_mask
    yield f"inside = {' & '.join(inside) or 'column >= 0'}"
    yield from _load(spec, "k", "v", "keys", ("k_token", "v_token"), str(bool(inside)))
    if spec.key_mask:
        yield "inside = inside & (tl.load(key_mask + keys, mask=inside, other=0) != 0)"
    yield f"acc, l, m = attend(queries, keys_here, values, acc, l, m, inside, scale_log2, {is_masked})"


def _load(
    spec: KernelSpec, keys: str, values: str, tokens: str, strides: tuple[str, str], is_masked: str
) -> Iterator[str]:
    """Load rows of keys and values, as what queries are multiplied as."""
    along = zip(("keys_here", "values"), (keys, values), strides, (spec.dtypes.k, spec.dtypes.v), strict=True)
    for name, tensor, stride, dtype in along:
        converted = "" if dtype == spec.dtypes.q else ".to(queries.dtype)"
        yield f"{name} = load_rows({tensor}, {tokens}, {stride}, inside, {is_masked}){converted}"


def _global_step(spec: KernelSpec) -> Iterator[str]:
    """Read one tile of all keys."""
    every = spec.program.everything
    starts, stops = map(source_of, every.starts(_I)), [source_of(span.stop) for span in every.region.spans]
    return _step(every.view, every.box, every.ragged, list(starts), stops, spec)


BODIES.register(TritonBody.name)(TritonBody())
