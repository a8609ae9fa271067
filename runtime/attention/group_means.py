"""The means of far groups: what a query does not read is read as one key and one value a group.

A mean counts as often as its group has tokens: exp(q·k) is taken as equal over a group, which by Jensen's inequality
is never more than it sums to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from planner.errors import BadAttentionInput


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
        raise BadAttentionInput(fault, "Pass a boolean mask that is one for all heads, or leave out pooled=mean.")
    return mask.reshape(-1, mask.shape[-1]).expand(batch, keys)
