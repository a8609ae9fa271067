"""The criss-cross: the groups that share coordinates with the query's, GRAT-X (arXiv 2505.14687)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch

from planner.patterns.axis_set import All, Others, Own
from planner.patterns.base import PATTERNS, Box, Breadth, Pattern

Axes = Literal["lines", "planes"]


@PATTERNS.register("crisscross")
@dataclass(frozen=True)
class CrissCross(Pattern):
    """The groups on the lines (at most one coordinate differs) or planes (at least one agrees) through the query's.

    In 2-D both are row and column, GRAT-X. In 3-D GRAT's published code is the union of planes.
    """

    axes: Axes = "lines"

    def attends(
        self, query: Sequence[torch.Tensor], key: Sequence[torch.Tensor], counts: Sequence[int]
    ) -> torch.Tensor:
        agreeing = sum((q == k).long() for q, k in zip(query, key, strict=True))
        assert isinstance(agreeing, torch.Tensor)
        return agreeing >= (len(self.group) - 1 if self.axes == "lines" else 1)

    def boxes(self) -> tuple[Box, ...]:
        axes = range(len(self.group))
        if self.axes == "planes":
            # Told apart by the first axis that agrees: those before it differ, those after it are free.
            return tuple(
                tuple(Others() if a < first else Own() if a == first else All() for a in axes) for first in axes
            )
        # The whole line along the last axis, then along each other axis what that line does not hold.
        last = len(self.group) - 1
        lines = [last, *range(last)]
        return tuple(
            tuple((All() if line == last else Others()) if a == line else Own() for a in axes) for line in lines
        )

    def reach(self, counts: Sequence[int]) -> int | None:
        varying = sum(count > 1 for count in counts)
        if self.pooled:
            return 1
        if self.axes == "lines":
            return max(1, varying)
        if varying < len(counts) or not varying:
            return 1
        return 2 if varying > 1 else None

    @classmethod
    def candidates(cls, group: tuple[int, ...], counts: Sequence[int], breadth: Breadth) -> Iterator[Self]:
        """Yield GRAT-X, and in 3-D for a budget or evidence lines as well; none in 1-D, where it reads everything."""
        videos: tuple[Axes, ...] = ("lines", "planes") if breadth >= Breadth.BUDGET else ("planes",)
        tried: dict[int, tuple[Axes, ...]] = {1: (), 2: ("lines",), 3: videos}
        yield from (cls(group, axes) for axes in tried[len(group)])
