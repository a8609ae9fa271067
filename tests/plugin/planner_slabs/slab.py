"""Slabs: the groups that share the query's coordinate along one axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from planner.errors import MalformedValue
from planner.patterns.axis_set import All, Own
from planner.patterns.base import PATTERNS, Box, Breadth, Pattern


@PATTERNS.register("slab")
@dataclass(frozen=True)
class Slab(Pattern):
    """The groups at the query's own coordinate along one axis; axis: its number, from slow to fast."""

    axis: int = 0

    def attends(
        self, query: Sequence[torch.Tensor], key: Sequence[torch.Tensor], counts: Sequence[int]
    ) -> torch.Tensor:
        return query[self.axis] == key[self.axis]

    def boxes(self) -> tuple[Box, ...]:
        return (tuple(Own() if axis == self.axis else All() for axis in range(len(self.group))),)

    def reach(self, counts: Sequence[int]) -> int | None:
        return 1 if self.pooled or counts[self.axis] == 1 else None

    @classmethod
    def candidates(cls, group: tuple[int, ...], counts: Sequence[int], breadth: Breadth) -> Iterator[Self]:
        tried = {Breadth.UNASKED: 0, Breadth.NAMED: 1}.get(breadth, len(group))
        yield from (cls(group, axis) for axis in range(tried))

    def verify(self) -> Self:
        if self.axis >= len(self.group):
            raise MalformedValue(str(self), f"its groups have no axis {self.axis}", "Count axes from 0.")
        return super().verify()
