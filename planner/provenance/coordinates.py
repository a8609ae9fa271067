"""The grid of packed tokens: what a call's own arguments say of a (batch, tokens, channels) input.

A packed input does not show its height and width. Three kinds of argument do, whatever their names:

- a tensor of coordinates, one row a token (``img_ids`` of FLUX), or a row for each token of the whole sequence;
- a tuple of extents, or a list of them, whose product is the number of tokens (``img_shapes`` of Qwen-Image);
- two or three whole numbers side by side in the signature with that product (``num_frames, height, width`` of LTX),
  or one that counts frames (``audio_num_frames``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from planner.capture.call import Call
from planner.patterns.layout import GlobalTokens, Grid, Segment


def segments_of(call: Call, name: str, tokens: int, start: int, total: int) -> tuple[list[Segment], set[str]]:
    """Return the segments that a packed input consists of, and its guards: the tensors whose values were read.

    Its tokens begin at ``start`` of a sequence of ``total``. Where no argument shows a grid, they are global.
    """
    grids, read = grids_of(call, tokens)
    guards = set(read)
    if grids:
        return [replace(grid, name=name) for grid in grids], guards
    for argument, tensor in call.tensors:
        if may_be_coordinates(tensor, total):
            guards.add(argument)
            segments = rasters_within(_rows(tensor, total)[start : start + tokens], name)
            if any(isinstance(segment, Grid) for segment in segments):
                return segments, guards
    return [GlobalTokens(name, tokens)], guards


def rasters_within(rows: torch.Tensor, name: str) -> list[Segment]:
    """Return the rasters in (tokens, coordinates) rows, and global tokens between them.

    A raster begins with a line: rows of which one coordinate ascends and the others stay. It goes on for as many lines
    of that length as follow each other.
    """
    steps = rows.double().diff(dim=0)
    on_line = ((steps != 0).sum(1) == 1) & (steps >= 0).all(1)
    breaks = [-1, *(~on_line).nonzero().flatten().tolist(), len(rows) - 1]
    lengths = [b - a for a, b in itertools.pairwise(breaks)]
    segments, first, line = list[Segment](), 0, 0
    while line < len(lengths):
        lines = next((n for n, length in enumerate(lengths[line:]) if length != lengths[line]), len(lengths) - line)
        size = lines * lengths[line]
        extents = grid_of_coordinates(rows[first : first + size], size) if lines > 1 and lengths[line] > 1 else None
        taken = lines if extents else 1
        if extents:
            segments.append(replace(grid_of_extents(extents), name=name))
        elif segments and isinstance(segments[-1], GlobalTokens):
            segments[-1] = replace(segments[-1], tokens=segments[-1].tokens + lengths[line])
        else:
            segments.append(GlobalTokens(name, lengths[line]))
        first += taken * lengths[line]
        line += taken
    return segments


def grids_of(call: Call, tokens: int) -> tuple[tuple[Grid, ...], tuple[str, ...]]:
    """Return the grids of a packed input of so many tokens, in order, and its guards: the tensors that were read.

    No grids where no argument shows any.
    """
    guards = list[str]()
    for name, tensor in call.tensors:
        if may_be_coordinates(tensor, tokens):
            guards.append(name)
            extents = grid_of_coordinates(tensor, tokens)
            if extents:
                return (grid_of_extents(extents),), tuple(guards)
    for shapes in _shapes([value for value in call.arguments.values() if isinstance(value, list | tuple)]):
        if sum(map(math.prod, shapes)) == tokens:
            return tuple(map(grid_of_extents, shapes)), tuple(guards)
    counts = [value if _is_count(value) else 0 for value in call.arguments.values()]
    for length in (3, 2):
        for first in range(len(counts) - length + 1):
            extents = tuple(counts[first : first + length])
            if math.prod(extents) == tokens:
                return (grid_of_extents(extents),), tuple(guards)
    for argument, value in call.arguments.items():
        if _is_count(value) and value == tokens and "frames" in argument:
            return (Grid((("n", tokens),)),), tuple(guards)
    return (), tuple(guards)


def grid_of_extents(extents: Sequence[int]) -> Grid:
    """Return a grid whose last axes are time, height and width; axes of length 1 are left out."""
    names = ("t", "h", "w")[-len(extents) :]
    axes = tuple((name, extent) for name, extent in zip(names, extents, strict=True) if extent > 1)
    return Grid(axes or (("w", 1),))


def may_be_coordinates(tensor: torch.Tensor, tokens: int) -> bool:
    """Tell whether a tensor is ([batch,] tokens, 2 to 4) or its transpose, and has values."""
    has_shape = tensor.dim() in (2, 3) and any(
        length == tokens and 2 <= width <= 4 for length, width in (tensor.shape[-2:], tensor.shape[:-3:-1])
    )
    return has_shape and tensor.device.type != "meta"


def _rows(tensor: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return (tokens, coordinates) of the first of a batch."""
    rows = (tensor if tensor.dim() == 2 else tensor[0]).detach().cpu()
    return rows if rows.shape[0] == tokens else rows.T


def grid_of_coordinates(tensor: torch.Tensor, tokens: int) -> tuple[int, ...] | None:
    """Return the extents, slow to fast, of the raster that ([batch,] tokens, coordinates) are of; None if of none.

    Values may be rounded (FLUX keeps its ids in bf16, where 257 is 256): only where a coordinate starts anew counts.
    """
    if not may_be_coordinates(tensor, tokens):
        return None
    rows = _rows(tensor, tokens).float()
    columns = [column for column in rows.unbind(1) if bool((column != column[0]).any())]
    if len(columns) < 2 or len(columns) > 3:
        return None
    columns = sorted(((_period(column), column) for column in columns), key=lambda pair: -pair[0])
    extents, inner = list[int](), 1
    for period, _ in reversed(columns):
        if period % inner:
            return None
        extents.insert(0, period // inner)
        inner = period
    if math.prod(extents) != tokens:
        return None
    for axis, (_, column) in enumerate(columns):
        raster = column.view(extents)
        line = raster[tuple(slice(None) if a == axis else slice(0, 1) for a in range(len(extents)))]
        if not torch.equal(raster, line.expand(raster.shape)):
            return None
    return tuple(extents)


def _period(column: torch.Tensor) -> int:
    """Return how many tokens come before a coordinate falls back for the first time."""
    falls = (column[1:] < column[:-1]).nonzero()
    return int(falls[0]) + 1 if len(falls) else len(column)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _shapes(value: Any) -> Iterator[list[tuple[int, ...]]]:
    """Yield the lists of extents in nested lists and tuples, outermost first; one tuple of extents is a list of one."""
    if not isinstance(value, list | tuple) or not value:
        return
    if len(value) in (2, 3) and all(map(_is_count, value)):
        yield [tuple(value)]
        return
    if all(isinstance(item, list | tuple) and len(item) in (2, 3) and all(map(_is_count, item)) for item in value):
        yield [tuple(item) for item in value]
    for item in value:
        yield from _shapes(item)
