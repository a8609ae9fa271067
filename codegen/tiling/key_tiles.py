"""Key tiles: a region of tokens cut into boxes of one shape, in closed form.

Only the last box along an axis can hold tokens outside its region: it is the only one whose columns are masked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy

from planner.codegen.tiling.boxes import View, power_boxes
from planner.codegen.tiling.regions import Region, Span
from planner.codegen.tiling.sympy_source import quotient


@dataclass(frozen=True)
class KeyTiles:
    """A region cut into boxes; the i-th has the digits of i in mixed radix, the last axis fastest."""

    region: Region
    box: tuple[int, ...]
    groups: tuple[int, ...] = ()
    """Groups along each axis of the grid: the values that coordinates take."""

    @property
    def view(self) -> View:
        """What the region lies in."""
        return View(*self.region.view)

    @cached_property
    def counts(self) -> tuple[sympy.Expr, ...]:
        """Boxes along each axis."""
        counts = list[sympy.Expr]()
        for span, lengths, box in zip(self.region.spans, self._lengths, self.box, strict=True):
            taken = {-(-length // box) for length in lengths}
            exact = all(length % box == 0 for length in lengths)
            length = sympy.sympify(span.stop - span.start)
            counts.append(sympy.Integer(taken.pop()) if len(taken) == 1 else _boxes(length, box, exact))
        return tuple(counts)

    @cached_property
    def _divisors(self) -> tuple[sympy.Expr, ...]:
        """Boxes along each axis, 1 where there are none: to divide by them must be possible."""
        along = zip(self.counts, self._lengths, strict=True)
        return tuple(count if min(lengths) else sympy.Max(1, count) for count, lengths in along)

    @cached_property
    def count(self) -> sympy.Expr:
        """Boxes in all."""
        return sympy.Mul(*self.counts)

    @property
    def mean_count(self) -> float:
        """Boxes on average over the groups; the axes are independent."""
        along = zip(self._lengths, self.box, strict=True)
        return math.prod(sum(-(-length // box) for length in lengths) / len(lengths) for lengths, box in along)

    @property
    def arguments(self) -> tuple[str, ...]:
        """None: all is known when the kernel is emitted."""
        return ()

    @property
    def may_lie_beyond(self) -> bool:
        """Whether a whole box may lie beyond the region."""
        return False

    def starts(self, i: sympy.Expr) -> tuple[sympy.Expr, ...]:
        """Return the coordinates of the i-th box's first token."""
        starts, stride = list[sympy.Expr](), sympy.Integer(1)
        for axis in reversed(range(len(self.box))):
            digit, count = quotient(i, stride), self._divisors[axis]
            if axis:
                digit = sympy.Mod(digit, count) if count != 1 else sympy.Integer(0)
            starts.append(self.region.spans[axis].start + digit * self.box[axis])
            stride = stride * count
        return tuple(reversed(starts))

    @cached_property
    def ragged(self) -> tuple[bool, ...]:
        """Along which axes the last box may hold tokens outside the region."""
        return tuple(
            any(length % box for length in lengths) for lengths, box in zip(self._lengths, self.box, strict=True)
        )

    @cached_property
    def _lengths(self) -> list[list[int]]:
        """The lengths that each axis of the region takes, over all groups."""
        return [span_lengths(span, self.groups) for span in self.region.spans]


def key_box(alike: Sequence[Region], groups: Sequence[int], tokens: int) -> tuple[int, ...]:
    """Choose the box that covers regions of one view with fewest tiles, over groups all over the grid."""
    lengths = [[span_lengths(span, groups) for span in region.spans] for region in alike]

    def badness(box: tuple[int, ...]) -> tuple[Any, ...]:
        # The axes of a region are independent: the mean of the product is the product of means.
        means = [
            [sum(-(-n // b) for n in along) / len(along) for along, b in zip(axes, box, strict=True)]
            for axes in lengths
        ]
        ragged = sum(any(n % b for n in along) for axes in lengths for along, b in zip(axes, box, strict=True))
        return sum(map(math.prod, means)), ragged, tuple(-b for b in reversed(box))

    return min(power_boxes(len(alike[0].spans), tokens), key=badness)


def span_lengths(span: Span, groups: Sequence[int]) -> list[int]:
    """List the lengths that a span takes, over all groups along its axis."""
    length = sympy.sympify(span.stop - span.start)
    if not length.free_symbols:
        return [int(length)]
    (symbol,) = length.free_symbols
    assert span.axis is not None
    at = sympy.lambdify(symbol, length, "math")
    return [at(c) for c in range(groups[span.axis])]


def _boxes(length: sympy.Expr, box: int, exact: bool) -> sympy.Expr:
    return quotient(length if exact else length + box - 1, box)
