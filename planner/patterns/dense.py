"""Dense attention: the pattern that leaves nothing out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch

from planner.patterns.axis_set import All
from planner.patterns.base import PATTERNS, Box, Breadth, MaskMod, Pattern
from planner.patterns.layout import TokenLayout


@PATTERNS.register("dense")
@dataclass(frozen=True)
class Dense(Pattern):
    """Every token attends to every token; there are no groups."""

    group: tuple[int, ...] = field(default=(), init=False)
    offset: tuple[int, ...] = field(default=(), init=False)
    pooled: bool = field(default=False, init=False)

    def attends(
        self, query: Sequence[torch.Tensor], key: Sequence[torch.Tensor], counts: Sequence[int]
    ) -> torch.Tensor:
        shape = torch.broadcast_shapes(*(x.shape for x in (*query, *key)))
        return torch.ones(shape, dtype=torch.bool, device=query[0].device)

    def mask_mod(self, layout: TokenLayout) -> MaskMod:
        return lambda q_idx, kv_idx: torch.ones(
            torch.broadcast_shapes(q_idx.shape, kv_idx.shape), dtype=torch.bool, device=q_idx.device
        )

    def boxes(self) -> tuple[Box, ...]:
        return (tuple(All() for _ in self.group),)

    def reach(self, counts: Sequence[int]) -> int | None:
        return 1

    @classmethod
    def candidates(cls, group: tuple[int, ...], counts: Sequence[int], breadth: Breadth) -> Iterator[Self]:
        """Yield none: dense attention is what candidates are judged against."""
        yield from ()

    def verify(self) -> Self:
        return self
