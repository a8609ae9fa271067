"""Neighbourhoods: the groups around the query's own, GRAT-B (arXiv 2505.14687) among them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Self

import torch

from planner.patterns.axis_set import Edge, Window
from planner.patterns.base import PATTERNS, Box, Breadth, Pattern

RADII = (1, 2, 3)
"""Radii that are tried; 1 is GRAT-B's."""


@PATTERNS.register("neighborhood")
@dataclass(frozen=True)
class Neighborhood(Pattern):
    """The groups within ``radius`` along every axis (GRAT-B: radius 1, the 3x3 surrounding groups).

    radius: one number an axis, or one for all. edge: whether windows at the grid's edge are shifted or cut off.
    """

    radius: tuple[int, ...] = field(default=(1,), metadata={"is_spread": True})
    edge: Edge = "clamp"

    def attends(
        self, query: Sequence[torch.Tensor], key: Sequence[torch.Tensor], counts: Sequence[int]
    ) -> torch.Tensor:
        near = list[torch.Tensor]()
        for q, k, radius, count in zip(query, key, self.radius, counts, strict=True):
            first = q - radius
            if self.edge == "clamp":
                first = first.clamp(0, max(0, count - 2 * radius - 1))
            near.append((first <= k) & (k <= first + 2 * radius))
        return reduce(torch.logical_and, near)

    def boxes(self) -> tuple[Box, ...]:
        return (tuple(Window(radius, self.edge) for radius in self.radius),)

    def reach(self, counts: Sequence[int]) -> int | None:
        layers = 1
        if self.pooled:
            return layers
        for count, radius in zip(counts, self.radius, strict=True):
            if count > 1 and radius == 0:
                return None
            if count > 1:
                hops = -(-(count - 1) // radius)
                layers = max(layers, hops - 1 if self.edge == "clamp" else hops)
        return layers

    @classmethod
    def candidates(cls, group: tuple[int, ...], counts: Sequence[int], breadth: Breadth) -> Iterator[Self]:
        """Yield radius 1 where the kind is named, several for a budget, and for evidence every radius per axis."""
        if breadth >= Breadth.EVIDENCE:
            most = [min(RADII[-1], (count - 1) // 2 + (count % 2 == 0)) for count in counts]
            radii = itertools.product(*(range(radius + 1) for radius in most))
        else:
            tried = {Breadth.UNASKED: (), Breadth.NAMED: RADII[:1], Breadth.BUDGET: RADII}[breadth]
            radii = ((radius,) for radius in tried)
        yield from (cls(group, radius) for radius in radii)

    def is_too_wide(self, counts: Sequence[int]) -> bool:
        return all(
            2 * radius + 1 >= count if self.edge == "clamp" else radius >= count - 1
            for radius, count in zip(self.radius, counts, strict=True)
        )
