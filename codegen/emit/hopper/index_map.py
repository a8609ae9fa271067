"""The index map of a Hopper kernel as source: which boxes of keys a query tile reads, and how much of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import sympy

from planner.codegen.emit.hopper.facts import HopperFacts
from planner.codegen.emit.kernel_source import by_pattern
from planner.codegen.spec.emitted import ViewArgument
from planner.codegen.tiling.group_means import MeanTiles
from planner.codegen.tiling.key_source import ListedTiles
from planner.codegen.tiling.key_tiles import KeyTiles
from planner.codegen.tiling.program import TileProgram
from planner.codegen.tiling.query_tiles import QueryTiles
from planner.codegen.tiling.sympy_source import Names, source_of

TILE = sympy.Symbol("tile", integer=True, nonnegative=True)
_INDEX = sympy.Symbol("i", integer=True, nonnegative=True)
_J = sympy.Symbol("j", integer=True, nonnegative=True)


def group_coords(programs: Sequence[TileProgram]) -> Iterator[str]:
    """Yield lines that return the coordinates of a query tile's group, or pair."""
    coords = [list(map(source_of, program.queries.coords(TILE))) for program in programs]
    if all(each == coords[0] for each in coords):
        yield f"return {', '.join(coords[0])}" if coords[0] else "return 0"
        return
    names = [str(c) for c in programs[0].coords]
    yield from by_pattern([[f"{c} = {x}" for c, x in zip(names, each, strict=True)] for each in coords])
    yield f"return {', '.join(names)}"


def tiles_read(programs: Sequence[TileProgram]) -> Iterator[str]:
    """Yield lines that return how many key tiles a query tile reads."""
    (listed,) = {program.listed for program in programs}  # of several patterns none has lists
    if listed is not None:
        yield from listed.bound(_loaded)
    yield from counted([program.tiles_read for program in programs])


def counted(counts: Sequence[sympy.Expr]) -> Iterator[str]:
    """Yield lines that return a number for each pattern, in the coordinates of the group, or of the pair."""
    edges = [Names([count], "edge") for count in counts]
    spelled = [names.source_of(count) for names, count in zip(edges, counts, strict=True)]
    if len(counts) == 1:
        yield from (*edges[0].lines(), f"return {spelled[0]}")
        return
    yield from by_pattern([[*names.lines(), f"count = {text}"] for names, text in zip(edges, spelled, strict=True)])
    yield "return count"


def mean_tiles(facts: HopperFacts) -> Iterator[str]:
    """Yield lines that say how many of a query tile's key tiles hold means, and where their biases begin."""
    firsts = [facts.spec.first_mean(each.means.kind) if each.means else 0 for each in facts.spec.programs]
    along = zip(facts.spec.programs, firsts, strict=True)
    return by_pattern([[f"count = {program.mean_tiles}", f"first = {first}"] for program, first in along])


def locate(facts: HopperFacts) -> Iterator[str]:
    """Yield lines that find view and coordinates of boxes of keys, region by region, of another box in each lane."""
    names = facts.box_fields
    yield f"{', '.join(names)} = {', '.join(['0 * i'] * len(names))}"
    yield from by_pattern([_regions(facts, program) for program in facts.spec.programs])
    if facts.has_global_rows:
        everything = _place(facts, facts.program.everything, _INDEX, Names([], "edge"), facts.passes_end)
        yield from (f"{name} = gl.where(is_global, {everything.get(name, 0)}, {name})" for name in names)
    yield f"return {', '.join(names)}"


def lies_outside(queries: QueryTiles) -> Iterator[str]:
    """Yield lines that tell whether a warpgroup has no queries of a tile, none where it always has some.

    Its share then begins where the grid has ended, or where the first group lacks tokens.
    """
    tests = list[str]()
    along = zip(queries.starts(TILE), within_tile(queries), queries.shares_empty, strict=True)
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


def within_tile(queries: QueryTiles) -> list[str]:
    """Return what a warpgroup's share adds to the start of a tile along each axis."""
    along = zip(digits(queries.shares, "wg"), queries.shares, queries.share, strict=True)
    return [f" + {digit} * {side}" if count > 1 else "" for digit, count, side in along]


def digits(box: Sequence[int], counter: str = "column") -> list[str]:
    """Return the coordinates within a box of what a counter runs over, a tile's columns for one."""
    found, inner = list[str](), 1
    for axis, side in reversed(list(enumerate(box))):
        digit = counter if inner == 1 else f"{counter} // {inner}"
        found.append("0" if side == 1 else digit if axis == 0 else f"{digit} % {side}")
        inner *= side
    return found[::-1]


def _regions(facts: HopperFacts, program: TileProgram) -> list[str]:
    """Write the lines that find what a pattern's query tile reads: shared names, then the boxes of each region."""
    ends = [end for tiles in program.keys if tiles is not program.listed for end in tiles.region.ends]
    edges = Names(ends, "edge")
    lines, end, named_end = list(edges.lines()), sympy.Integer(0), "0"
    if program.listed is not None:
        lines += program.listed.bound(_loaded)
    read = program.sources
    for at, tiles in enumerate(read):
        first, end, named, is_last = end, end + tiles.count, named_end, at + 1 == len(read)
        if not is_last:
            named_end = source_of(end) if end.is_Integer else f"end{at}"
            if not end.is_Integer:
                count = edges.source_of(tiles.count)
                lines.append(f"{named_end} = {count}" if named == "0" else f"{named_end} = {named} + {count}")
        index = _INDEX if first == 0 else _J
        if first != 0:
            lines.append(f"j = gl.maximum(i - {named}, 0)")
        if isinstance(tiles, MeanTiles):
            found = _place_means(tiles, index, facts.k_views, program.boxes)
        elif isinstance(tiles, ListedTiles):
            inner = Names(tiles.region.ends, "listed_edge")
            lines += [*_lookup(tiles, index), *inner.lines()]
            found = _place(facts, tiles, index, inner, tiles.may_lie_beyond)
        else:
            found = _place(facts, tiles, index, edges)
        found = {name: value for name, value in found.items() if value != "0"}
        if len(read) == 1:
            lines += (f"{name} += {value}" for name, value in found.items())
            continue
        after, before = f"i >= {named}", f"i < {named_end}"
        lines.append(f"here = {before if first == 0 else after if is_last else f'({after}) & ({before})'}")
        lines += (f"{name} = gl.where(here, {value}, {name})" for name, value in found.items())
    return lines


def _lookup(tiles: ListedTiles, index: sympy.Symbol) -> Iterator[str]:
    """Lines that find the group of each lane's box; lanes beyond the list look at the last place it may have."""
    yield f"within = gl.minimum({index}, {tiles.longest * tiles.boxes_per_group - 1})"
    yield from tiles.lookup(sympy.Symbol("within", integer=True, nonnegative=True), _loaded)


def _loaded(pointer: str) -> str:
    return f"gl.load({pointer})"


def _place(
    facts: HopperFacts, tiles: KeyTiles, index: sympy.Symbol, edges: Names, passes_end: bool = False
) -> dict[str, str]:
    """View and coordinates of a box of tokens; passes_end: it may begin beyond them all."""
    number = next(at for at, view in enumerate(facts.k_views) if (view.view, view.box) == (tiles.view, tiles.box))
    starts = [edges.source_of(start) for start in tiles.starts(index)]
    found = {"view": str(number)} | {f"x{axis}": start for axis, start in enumerate(starts)}
    if facts.has_extents:
        found["extent"] = _extent(tiles, number, edges, always=facts.spec.key_mask, passes_end=passes_end)
    return found


def _place_means(means: MeanTiles, index: sympy.Symbol, views: Sequence[ViewArgument], boxes: int) -> dict[str, str]:
    """View and coordinates of a box of means; the extent is one beyond those of the views."""
    number = next(at for at, view in enumerate(views) if view.stem == f"means_{means.kind}")
    return {"view": str(number), "x0": f"{index} * {means.block // boxes}", "extent": f"{len(views) + 1} << 24"}


def _extent(tiles: KeyTiles, view: int, edges: Names, always: bool, passes_end: bool) -> str:
    """Write how many of the box's tokens along each axis the group reads, where it may not be all, or always."""
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
