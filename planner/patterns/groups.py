"""Groups: the unit of sparsity, and the order in which grouped tokens are stored.

Groups at the edges of the grid may be smaller, so any resolution and any offset works and nothing is padded. A grid
whose first group lacks ``front_pad`` tokens is one that is longer by so many, of which these are left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from planner.errors import MalformedValue
from planner.patterns.arithmetic import INTS, TENSORS, Arithmetic, Number
from planner.shapes import times

MAX_GROUPS = 2**24
"""Groups of a grid: orders and lists of them are worked out one by one."""


def start_along(c: Number, g: Number, front_pad: int = 0, arithmetic: Arithmetic = INTS) -> Number:
    """Return the first token of the c-th group along an axis, of g tokens each; the first lacks ``front_pad``."""
    return arithmetic.maximum(c * g - front_pad, 0) if front_pad else c * g


def extent_along(c: Number, g: Number, n: Number, arithmetic: Arithmetic = INTS, front_pad: int = 0) -> Number:
    """Count the tokens of the c-th group along an axis of n tokens."""
    if front_pad:
        return arithmetic.minimum((c + 1) * g - front_pad, n) - start_along(c, g, front_pad, arithmetic)
    if isinstance(n, int) and n % g == 0:
        return g
    return arithmetic.minimum(g, n - c * g)


def group_start(
    coords: Sequence[Number],
    group: Sequence[Number],
    sizes: Sequence[Number],
    arithmetic: Arithmetic = INTS,
    front_pad: Sequence[int] = (0, 0, 0),
) -> Number:
    """Return the position in group order of a group's first token.

    Before it lie, axis by axis, all tokens of the slabs that come earlier along that axis inside the same
    slabs of the slower axes: sum over axes a of ``start_a · prod(extent_b, b < a) · prod(n_b, b > a)``.
    """
    start, outer = 0, 1
    for axis, (c, g, n) in enumerate(zip(coords, group, sizes, strict=True)):
        start = start + start_along(c, g, front_pad[axis], arithmetic) * outer * math.prod(sizes[axis + 1 :])
        outer = outer * extent_along(c, g, n, arithmetic, front_pad[axis])
    return start


@dataclass(frozen=True)
class GroupGrid:
    """A grid of ``sizes`` tokens cut into groups of shape ``group``, axes from slow to fast.

    offset: tokens of the first group along each axis, where it is smaller than the others; 0 or nothing where not.
    """

    sizes: tuple[int, ...]
    group: tuple[int, ...]
    offset: tuple[int, ...] = ()

    @property
    def front_pad(self) -> tuple[int, ...]:
        """Tokens along each axis that the first group lacks."""
        return front_pad_of(self.group, self.offset)

    @property
    def counts(self) -> tuple[int, ...]:
        """Groups along each axis."""
        return tuple(
            INTS.ceil_div(n + front_pad, g)
            for n, g, front_pad in zip(self.sizes, self.group, self.front_pad, strict=True)
        )

    @property
    def even_axes(self) -> tuple[int, ...]:
        """Axes along which groups go up two by two, first those along which all are whole."""
        even = (axis for axis, count in enumerate(self.counts) if count % 2 == 0)
        return tuple(sorted(even, key=lambda axis: self.sizes[axis] % self.group[axis] > 0))

    def coords(self) -> Iterator[tuple[int, ...]]:
        """Yield the coordinates of all groups in storage order."""
        return itertools.product(*map(range, self.counts))

    def size(self, coords: Sequence[int]) -> int:
        """Count the tokens of one group."""
        along = zip(coords, self.group, self.sizes, self.front_pad, strict=True)
        return math.prod(extent_along(c, g, n, front_pad=front_pad) for c, g, n, front_pad in along)

    def start(self, coords: Sequence[int]) -> int:
        """Return the position in group order of a group's first token."""
        return group_start(coords, self.group, self.sizes, front_pad=self.front_pad)

    def positions(self) -> torch.Tensor:
        """Return the position in group order of every token in raster order, shape (tokens,), int64."""
        token = self._tokens()
        coords = self.group_of(token)
        local = torch.zeros((), dtype=torch.int64)
        for x, c, g, n, front_pad in zip(token, coords, self.group, self.sizes, self.front_pad, strict=True):
            local = local * extent_along(c, g, n, TENSORS, front_pad) + (x - start_along(c, g, front_pad, TENSORS))
        return (group_start(coords, self.group, self.sizes, TENSORS, self.front_pad) + local).flatten()

    def numbers(self) -> torch.Tensor:
        """Return the number, in storage order, of the group of every token in raster order, shape (tokens,), int64."""
        number = torch.zeros((), dtype=torch.int64)
        for coord, count in zip(self.group_of(self._tokens()), self.counts, strict=True):
            number = number * count + coord
        return number.flatten()

    def _tokens(self) -> list[torch.Tensor]:
        """Return the coordinates of all tokens, one int64 tensor an axis, broadcastable to the sizes of the grid."""
        shape = [1] * len(self.sizes)
        return [torch.arange(n).view(*shape[:axis], n, *shape[axis + 1 :]) for axis, n in enumerate(self.sizes)]

    def group_of(self, token: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the coordinates of the groups of tokens.

        token: their coordinates, one int64 tensor of any shape an axis; so is the result.
        """
        return [(x + front_pad) // g for x, g, front_pad in zip(token, self.group, self.front_pad, strict=True)]

    def order(self) -> torch.Tensor:
        """Return the raster index of the token at every position in group order, shape (tokens,), int64."""
        positions = self.positions()
        order = torch.empty_like(positions)
        order[positions] = torch.arange(len(positions))
        return order

    def verify(self) -> GroupGrid:
        """Return the value itself; raises MalformedValue."""
        if len(self.sizes) != len(self.group) or not self.sizes:
            fault = f"groups of {times(self.group)} do not have the axes of a grid of {times(self.sizes)}"
            raise MalformedValue(repr(self), fault, "Give one number an axis.")
        if any(not 1 <= g <= n for g, n in zip(self.group, self.sizes, strict=True)):
            fault = f"groups of {times(self.group)} do not fit in a grid of {times(self.sizes)}"
            raise MalformedValue(repr(self), fault, "Give every axis a group between 1 and its length.")
        if math.prod(self.counts) > MAX_GROUPS:
            fault = f"groups of {times(self.group)} in a grid of {times(self.sizes)} are {math.prod(self.counts)}"
            raise MalformedValue(repr(self), fault, f"Use larger groups: {MAX_GROUPS} at most.")
        return self


def front_pad_of(group: Sequence[int], offset: Sequence[int]) -> tuple[int, ...]:
    """Return the tokens along each axis that the first group lacks, whose size is the offset."""
    return tuple((g - o) % g for g, o in zip(group, offset, strict=True)) if offset else (0,) * len(group)
