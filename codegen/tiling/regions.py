"""Regions: what a tile of queries reads, as a few boxes of tokens, in closed form.

A pattern is a disjoint union of boxes of groups. Along an axis a box covers one range of groups, or two. So a pattern
is a disjoint union of *regions*: products of token ranges whose ends are expressions in the query group's coordinates.
A region is read tile by tile; only tiles at its high ends hold tokens outside it. Global tokens are regions of one
axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import sympy

from planner.patterns.arithmetic import INTS, Arithmetic, Number
from planner.patterns.axis_set import Own
from planner.patterns.base import Box, Pattern
from planner.patterns.dense import Dense
from planner.patterns.layout import TokenLayout


@dataclass(frozen=True)
class Span:
    """A range [start, stop) of tokens along one axis of ``size`` tokens, which lie ``stride`` apart in the sequence.

    axis: the grid axis whose coordinate the range depends on, None if it depends on none.
    """

    size: int
    stride: int
    start: Number
    stop: Number
    axis: int | None

    @property
    def is_whole(self) -> bool:
        """Whether the range is the whole axis, whatever the query."""
        return self.start == 0 and self.stop == self.size


@dataclass(frozen=True)
class Region:
    """A product of spans, slow to fast, around a view whose first token is ``origin``."""

    origin: int
    spans: tuple[Span, ...]

    @property
    def ends(self) -> list[Number]:
        """Where the spans start and stop."""
        return [end for span in self.spans for end in (span.start, span.stop)]

    @property
    def view(self) -> tuple[int, tuple[tuple[int, int], ...]]:
        """(origin, (size, stride) along each axis): what a tensor map must know to read tiles of the region."""
        return self.origin, tuple((span.size, span.stride) for span in self.spans)


def regions(
    layout: TokenLayout, pattern: Pattern, coords: Sequence[Number], arithmetic: Arithmetic = INTS
) -> tuple[Region, ...]:
    """Return the disjoint regions that the group at coords reads, global tokens first; empty ones included."""
    return (*global_regions(layout), *grid_regions(layout, pattern, coords, arithmetic))


def global_regions(layout: TokenLayout) -> tuple[Region, ...]:
    """Return the runs of global tokens before and after the grid."""
    runs = ((0, layout.grid_start), (layout.grid_start + layout.grid.tokens, layout.tokens))
    return tuple(_run(layout, start, stop) for start, stop in runs if start < stop)


def whole(layout: TokenLayout) -> Region:
    """Return the region of all tokens: what a global query reads."""
    return _run(layout, 0, layout.tokens)


def grid_regions(
    layout: TokenLayout, pattern: Pattern, coords: Sequence[Number], arithmetic: Arithmetic = INTS
) -> tuple[Region, ...]:
    """Return the regions of grid tokens that the group at coords reads."""
    if isinstance(pattern, Dense):
        sizes = layout.grid.sizes
        strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
        spans = [Span(n, s, 0, n, None) for n, s in zip(sizes, strides, strict=True)]
        return (_joined(layout, spans),)
    return _box_regions(layout, pattern, pattern.boxes(), coords, arithmetic)


def own_region(
    layout: TokenLayout, pattern: Pattern, coords: Sequence[Number], arithmetic: Arithmetic = INTS
) -> Region:
    """Return the region of the group at coords itself."""
    (region,) = _box_regions(layout, pattern, [(Own(),) * len(coords)], coords, arithmetic)
    return region


def _box_regions(
    layout: TokenLayout, pattern: Pattern, boxes: Sequence[Box], coords: Sequence[Number], arithmetic: Arithmetic
) -> tuple[Region, ...]:
    """Return the regions of boxes of groups around the group at coords."""
    sizes = layout.grid.sizes
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    counts = pattern.grid(sizes).counts
    found = list[Region]()
    for box in boxes:
        spans = list[list[Span]]()
        for axis, axis_set in enumerate(box):
            c, G, n = coords[axis], counts[axis], sizes[axis]
            begin = partial(
                _begin, c=c, G=G, g=pattern.group[axis], n=n, front_pad=pattern.front_pad[axis], arithmetic=arithmetic
            )
            ranges = [
                (first, last)
                for first, last in axis_set.ranges(c, G, arithmetic)
                if not (isinstance(last, int) and isinstance(first, int) and last <= first)
            ]
            spans.append([Span(n, strides[axis], begin(first), begin(last), axis) for first, last in ranges])
        found += [_joined(layout, product) for product in itertools.product(*spans)]
    return tuple(found)


def shared_by_pair(
    regions: Sequence[Region], axis: int, coord: sympy.Symbol, pairs: int
) -> tuple[list[Region], list[Region], list[Region]]:
    """Divide what two groups side by side along an axis read: (both, the first alone, the second alone).

    regions: of one group in its coordinates. Those found are in the coordinates of the pair, whose groups have twice
    its coordinate along the axis, and one more. Both ends of a region grow with the coordinate.
    """
    found: tuple[list[Region], list[Region], list[Region]] = ([], [], [])
    for region in regions:
        at = next((at for at, span in enumerate(region.spans) if span.axis == axis), None)
        if at is None:
            found[0].append(region)
            continue
        span = region.spans[at]
        (start, stop), (next_start, next_stop) = (
            [sympy.sympify(end).subs(coord, 2 * coord + second) for end in (span.start, span.stop)]
            for second in range(2)
        )
        low, high = _sorted(next_start, stop, coord, pairs)
        ranges = (next_start, high), (start, low), (high, next_stop)
        for which, (begin, end) in zip(found, ranges, strict=True):
            part = replace(span, start=begin, stop=end)
            which.append(replace(region, spans=(*region.spans[:at], part, *region.spans[at + 1 :])))
    return found


def _sorted(a: sympy.Expr, b: sympy.Expr, coord: sympy.Symbol, count: int) -> tuple[sympy.Expr, sympy.Expr]:
    """Return the lesser and the greater of two expressions, for each value of a coordinate."""
    difference = sympy.lambdify(coord, b - a, "math")
    signs = [difference(c) for c in range(count)]
    if min(signs) >= 0:
        return a, b
    return (b, a) if max(signs) <= 0 else (sympy.Min(a, b), sympy.Max(a, b))


def _begin(group: Number, c: Number, G: int, g: int, n: int, front_pad: int, arithmetic: Arithmetic) -> Number:
    """Return the token at which a group begins, n for the group after the last."""
    if group == G:
        return n
    token = group * g - front_pad
    if not isinstance(group, sympy.Expr) or group.is_Integer:
        return arithmetic.minimum(arithmetic.maximum(token, 0), n)
    values = list(map(sympy.lambdify(c, token, "math"), range(G)))
    token = arithmetic.maximum(token, 0) if min(values) < 0 else token
    return arithmetic.minimum(token, n) if max(values) > n else token


def _joined(layout: TokenLayout, spans: Sequence[Span]) -> Region:
    """Join axes that are read whole with the slower axis before them: their tokens are contiguous.

    What is left with one axis is a run of the sequence.
    """
    joined = list[Span]()
    for span in spans:
        if joined and span.is_whole:
            slow = joined.pop()
            size = slow.size * span.size
            stop = size if slow.is_whole else slow.stop * span.size
            joined.append(Span(size, span.stride, slow.start * span.size, stop, slow.axis))
        else:
            joined.append(span)
    if len(joined) > 1:
        return Region(layout.grid_start, tuple(joined))
    start, stop = (end + layout.grid_start for end in (joined[0].start, joined[0].stop))
    return Region(0, (Span(layout.tokens, 1, start, stop, joined[0].axis),))


def _run(layout: TokenLayout, start: int, stop: int) -> Region:
    return Region(0, (Span(layout.tokens, 1, start, stop, None),))
