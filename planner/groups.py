"""Groups: the unit of sparsity, and the order in which grouped tokens are stored.

Groups at the high edge of the grid may be smaller, so any resolution works and nothing is padded.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from planner.arithmetic import INTS, TENSORS, Arithmetic, Number
from planner.errors import MalformedValue, times


def extent_along(c: Number, g: Number, n: Number, arithmetic: Arithmetic = INTS) -> Number:
    """Tokens of the c-th group along an axis of n tokens cut into groups of g."""
    if isinstance(n, int) and n % g == 0:
        return g
    return arithmetic.minimum(g, n - c * g)


def group_start(
    coords: Sequence[Number], group: Sequence[Number], sizes: Sequence[Number], arithmetic: Arithmetic = INTS
) -> Number:
    """Position in group order of a group's first token.

    Before it lie, axis by axis, all tokens of the slabs that come earlier along that axis inside the same
    slabs of the slower axes: sum over axes a of ``c_a g_a · prod(extent_b, b < a) · prod(n_b, b > a)``.
    """
    start, outer = 0, 1
    for axis, (c, g, n) in enumerate(zip(coords, group, sizes, strict=True)):
        start = start + c * g * outer * math.prod(sizes[axis + 1 :])
        outer = outer * extent_along(c, g, n, arithmetic)
    return start


@dataclass(frozen=True)
class GroupGrid:
    """A grid of ``sizes`` tokens cut into groups of shape ``group``, axes from slow to fast."""

    sizes: tuple[int, ...]
    group: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Groups along each axis."""
        return tuple(INTS.ceil_div(n, g) for n, g in zip(self.sizes, self.group, strict=True))

    def coords(self) -> Iterator[tuple[int, ...]]:
        """Coordinates of all groups in storage order."""
        return itertools.product(*map(range, self.counts))

    def size(self, coords: Sequence[int]) -> int:
        """Tokens of one group."""
        return math.prod(map(extent_along, coords, self.group, self.sizes))

    def start(self, coords: Sequence[int]) -> int:
        """Position in group order of a group's first token."""
        return group_start(coords, self.group, self.sizes)

    def positions(self) -> torch.Tensor:
        """Position in group order of every token in raster order, shape (tokens,), int64."""
        shape = [1] * len(self.sizes)
        token = [torch.arange(n).view(*shape[:axis], n, *shape[axis + 1 :]) for axis, n in enumerate(self.sizes)]
        coords = [x // g for x, g in zip(token, self.group, strict=True)]
        local = torch.zeros((), dtype=torch.int64)
        for x, c, g, n in zip(token, coords, self.group, self.sizes, strict=True):
            local = local * extent_along(c, g, n, TENSORS) + (x - c * g)
        return (group_start(coords, self.group, self.sizes, TENSORS) + local).flatten()

    def order(self) -> torch.Tensor:
        """Raster index of the token stored at every position in group order, shape (tokens,), int64."""
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
        return self
