"""A pattern whose key groups are listed at run time, lists of random groups, and masked dense attention under them."""

import math
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from planner.patterns.axis_set import All
from planner.patterns.base import PATTERNS, Box, Pattern


@dataclass(frozen=True)
class Listed(Pattern):
    """What a list made at run time names, so many key groups at most; longest: how many."""

    longest: int = field(default=4, metadata={"least": 1})

    def attends(self, query, key, counts):
        return (query[0] == query[0]) & (key[0] == key[0])

    def boxes(self) -> tuple[Box, ...]:
        return ((All(),) * len(self.group),)

    def reach(self, counts: Sequence[int]) -> int:
        return 1

    def list_length(self, counts: Sequence[int]) -> int:
        return self.longest


@contextmanager
def registered():
    """Give the pattern a spelling, ``listed{longest=4,group=8x8}``, until this is left."""
    before = dict(PATTERNS)
    PATTERNS.register("listed")(Listed)
    try:
        yield
    finally:
        PATTERNS._entries = before


def random_lists(spec, device="cpu"):
    """Draw lists for every head and query group: 1 to ``longest`` key groups in any order, no groups behind them."""
    (pattern,), sizes = spec.patterns, spec.token_layout.grid.sizes
    groups = math.prod(pattern.grid(sizes).verify().counts)
    longest = min(pattern.longest, groups)
    lists = torch.full((spec.batch, spec.heads, groups, 1 + pattern.longest), 1 << 20, dtype=torch.int32)
    lists[..., 0] = torch.randint(1, longest + 1, lists.shape[:3])
    chosen = torch.rand(*lists.shape[:3], groups).argsort(-1)[..., :longest].int()
    held = torch.arange(longest) < lists[..., :1]
    lists[..., 1 : 1 + longest] = torch.where(held, chosen, lists[..., 1 : 1 + longest])
    return lists.to(device)


def masked_dense(spec, q, k, v, lists):
    """(output, log-sum-exp) in float64 of queries that read the listed groups and global tokens; these read all."""
    (pattern,), layout = spec.patterns, spec.token_layout
    grid, index = pattern.grid(layout.grid.sizes), torch.arange(spec.queries)
    groups = torch.arange(math.prod(grid.counts))
    numbers = torch.zeros(spec.queries, dtype=torch.long)
    numbers[layout.grid_start : layout.grid_start + layout.grid.tokens] = grid.numbers()
    reads = torch.zeros(*lists.shape[:3], len(groups), dtype=torch.bool)
    for place in range(1, lists.shape[3]):
        is_held = lists[..., :1].cpu() >= place
        reads |= is_held & (lists[..., place : place + 1].cpu() == groups)
    reads = reads[:, :, numbers][..., numbers]
    reads |= layout.is_global(index)[:, None] | layout.is_global(index)
    k, v = (x.double().repeat_interleave(spec.heads // spec.kv_heads, 1) for x in (k, v))
    scores = (q.double() @ k.mT * spec.head_dim**-0.5).masked_fill(~reads.to(q.device), -torch.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)
