"""What TMA moves in a Hopper kernel, as source: boxes of keys to shared memory, queries there, and output back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from planner.codegen.emit.hopper.facts import COORDINATES, HopperFacts
from planner.codegen.emit.hopper.index_map import TILE, digits, within_tile
from planner.codegen.emit.kernel_source import indented
from planner.codegen.spec.emitted import ViewArgument
from planner.codegen.tiling.program import TileProgram
from planner.codegen.tiling.query_tiles import QueryTiles
from planner.codegen.tiling.sympy_source import source_of


def load_box(views: Sequence[ViewArgument]) -> Iterator[str]:
    """Yield lines that load a box of keys from the view that it lies in."""
    dst = "boxes.index((stage * CHANNEL_SLICES + channels) * BOXES + side)"
    branches = list[tuple[str, list[str]]]()
    for number, view in enumerate(views):
        outer, last = ("outer", "last + ") if view.tensor in "kv" else ("mean_outer", "")
        at = ", ".join([outer, *COORDINATES[: len(view.box)], f"{last}channels * CHANNELS"])
        load = f"async_load({view.stem}, [{at}], bar, {_as_box_of(view.stem, dst)})"
        branches.append((f"view == {number}", ["for channels in gl.static_range(CHANNEL_SLICES):", f"    {load}"]))
    yield from _branching(branches)


def move_queries(facts: HopperFacts, views: Sequence[ViewArgument], load: bool) -> Iterator[str]:
    """Yield lines that move a warpgroup's share of a query tile between device and shared memory."""
    queries = facts.program.queries
    of_grid, runs = views[: len(queries.views())], views[len(queries.views()) :]

    def of_run(number: int, tile: str) -> list[str]:
        return [_move(runs[number].name, [f"{tile} * BLOCK_M + wg * WG_M"], load)]

    return _by_run(facts.program, of_run, list(_move_grid(queries, of_grid, load)))


def store_lse(program: TileProgram) -> Iterator[str]:
    """Yield lines that store the log-sum-exp of a warpgroup's rows."""

    def of_run(number: int, tile: str) -> list[str]:
        start, size = program.global_runs[number]
        return [
            f"place = {tile} * BLOCK_M + row",
            f"gl.store(lse + {start} + place, values, mask=place < {size})",
        ]

    return _by_run(program, of_run, list(_store_grid_lse(program.queries)))


def _branching(branches: Sequence[tuple[str, list[str]]]) -> Iterator[str]:
    """Yield lines under conditions, of which the last is true if no other is."""
    if len(branches) == 1:
        yield from branches[0][1]
        return
    for number, (condition, body) in enumerate(branches):
        is_last = number + 1 == len(branches)
        yield "else:" if is_last else f"{'if' if number == 0 else 'elif'} {condition}:"
        yield from indented(body)


def _by_run(program: TileProgram, of_run: Callable[[int, str], list[str]], of_grid: list[str]) -> Iterator[str]:
    """Yield a branch for each run of global queries, by its number and the tile's index in it, and one for the grid."""
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


def _move_grid(queries: QueryTiles, views: Sequence[ViewArgument], load: bool) -> Iterator[str]:
    """Yield the moves of a box; TMA writes none that begins before its view, so such a box has a view of its own."""
    starts, within = [source_of(start) for start in queries.starts(TILE)], within_tile(queries)
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


def _move(name: str, starts: Sequence[str], load: bool) -> str:
    at = ", ".join(starts)
    if load:
        return f"async_load({name}, [outer, {at}, last], bar, {_as_box_of(name, 'dst')})"
    return f"async_store({name}, [outer, {at}, last], {_as_box_of(name, 'src')})"


def _as_box_of(view: str, shared: str) -> str:
    """Write shared memory in the shape in which a view is moved."""
    return f"reinterpret({shared}, {view}.dtype, {view}.block_type.shape, {view}.layout)"


def _store_grid_lse(queries: QueryTiles) -> Iterator[str]:
    # Rows count from 0 within a warpgroup's share, whose own start is added along the axes that were cut.
    places, inside = list[str](), list[str]()
    starts, within = [source_of(start) for start in queries.starts(TILE)], within_tile(queries)
    for axis, (start, more, digit, (size, stride), first) in enumerate(
        zip(starts, within, digits(queries.share, "row % WG_M"), queries.view.axes, queries.first_sides, strict=True)
    ):
        begins = f"max({start}, 0)" if first else start
        yield f"at{axis} = {begins}{more} + {digit}"
        places.append(f"at{axis} * {stride}")
        inside.append(f"(at{axis} < gl.where({start} < 0, {first}, {size}))" if first else f"(at{axis} < {size})")
    yield f"gl.store(lse + {queries.view.origin} + {' + '.join(places)}, values, mask={' & '.join(inside)})"
