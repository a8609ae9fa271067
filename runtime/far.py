"""The means of far groups: what a query does not read is read as one key and one value a group.

A mean counts as often as its group has tokens: exp(q·k) is taken as equal over a group, which by Jensen's inequality
is never more than it sums to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from planner.errors import BadAttentionInput
from planner.layout import TokenLayout
from planner.pattern import parse_pattern

WORKING_SET = 2**26
"""Scores to hold at once: 256 MiB of float32."""


@dataclass(frozen=True)
class FarGroups:
    """The groups of a site. numbers: (grid tokens,), each token's group. unread: (groups, groups), true where the group
    of a row does not read that of a column. grid: the places of the grid's tokens in the sequence.
    """

    numbers: torch.Tensor
    unread: torch.Tensor
    grid: slice


@lru_cache(maxsize=64)
def far_groups(layout_text: str, pattern_text: str, device: torch.device) -> FarGroups:
    """The groups of a layout and a pattern by their spellings; O(groups²) memory."""
    layout, pattern = TokenLayout.parse(layout_text), parse_pattern(pattern_text)
    grid = pattern.grid(layout.grid.sizes)
    coords = torch.tensor(list(grid.coords())).unbind(1)
    reads = pattern.attends([x[:, None] for x in coords], [x[None, :] for x in coords], grid.counts)
    at = slice(layout.grid_start, layout.grid_start + layout.grid.tokens)
    return FarGroups(grid.numbers().to(device), ~reads.expand(len(reads), -1).to(device), at)


def group_means(
    tensors: Sequence[torch.Tensor], numbers: torch.Tensor, groups: int, seen: torch.Tensor | None = None
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The means of tensors (B, H, grid tokens, D) over their groups, (B, H, groups, D), and the logarithms of how many
    tokens they are of, float32 (B or 1, groups), -inf for none. seen: (B, grid tokens), the tokens that count.
    """
    weights = torch.ones(1, len(numbers), device=numbers.device) if seen is None else seen.float()
    counts = weights.new_zeros(len(weights), groups).index_add_(1, numbers, weights)
    means = list[torch.Tensor]()
    for x in tensors:
        exact = torch.promote_types(x.dtype, weights.dtype)
        total = torch.zeros(*x.shape[:2], groups, x.shape[3], device=x.device, dtype=exact)
        total.index_add_(2, numbers, (x * weights[:, None, :, None]).to(total.dtype))
        means.append((total / counts.clamp(min=1)[:, None, :, None]).to(x.dtype))
    return means, counts.log()


def seen_keys(mask: torch.Tensor | None, batch: int, keys: int) -> torch.Tensor | None:
    """Which keys a mask over keys shows, (B, keys).

    Raises BadAttentionInput for a mask that is not boolean or differs by head.
    """
    if mask is None:
        return None
    if mask.dtype != torch.bool or (mask.dim() == 4 and mask.shape[1] > 1):
        fault = f"a mask of shape {tuple(mask.shape)} and type {mask.dtype} with means of far groups"
        raise BadAttentionInput(fault, "Pass a boolean mask that is one for all heads, or leave out far=mean.")
    return mask.reshape(-1, mask.shape[-1]).expand(batch, keys)


def far_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    groups: FarGroups,
    seen: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of the grid's queries over the means of the groups that they do not read, and its log-sum-exp.

    query (B, H, N, D), key and value (B, H', N, D) -> (B, H, grid tokens, D), float32 (B, H, grid tokens), -inf where
    everything is read.
    """
    per_kv = query.shape[1] // key.shape[1]
    seen = None if seen is None else seen[:, groups.grid]
    count = len(groups.unread)
    (keys, values), sizes = group_means([x[:, :, groups.grid] for x in (key, value)], groups.numbers, count, seen)
    keys, values = (x.repeat_interleave(per_kv, 1) for x in (keys, values))
    outs, sums = list[torch.Tensor](), list[torch.Tensor]()
    step = max(1, WORKING_SET // (query.shape[0] * query.shape[1] * count))
    for q, numbers in zip(query[:, :, groups.grid].split(step, 2), groups.numbers.split(step), strict=True):
        bias = torch.where(groups.unread[numbers], sizes[:, None, None, :], float("-inf"))
        scores = (q @ keys.mT).float() * scale + bias
        sums.append(scores.logsumexp(3))
        outs.append((scores - sums[-1][..., None]).exp().nan_to_num(0.0).to(values.dtype) @ values)
    return torch.cat(outs, 2), torch.cat(sums, 2)


def merge(near: torch.Tensor, near_sums: torch.Tensor, far: torch.Tensor, far_sums: torch.Tensor) -> torch.Tensor:
    """Attention over two sets of keys from that over each, by their log-sum-exps; zero over none at all."""
    weight = torch.sigmoid((far_sums - near_sums).float()).nan_to_num(0.0)[..., None]
    return torch.lerp(near.float(), far.float(), weight).to(near.dtype)
