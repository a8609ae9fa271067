"""Pooled groups: a group whose tokens a query does not read is read as one key and one value, their means.

A mean counts as often as its group has tokens: exp(q·k) is taken as equal over a group, which by Jensen's inequality
is never more than it sums to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from planner.errors import BadAttentionInput


def group_means(
    tensors: Sequence[torch.Tensor], group_ids: torch.Tensor, groups: int, visible: torch.Tensor | None = None
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Average tensors over the groups of a grid.

    tensors: (B, H, grid tokens, D) each, of any floating dtype. group_ids: (grid tokens,) int64, the group of each
    token, below ``groups``. visible: (B, grid tokens) bool, the tokens that count, all by default.

    Returns the means, (B, H, groups, D) in the tensors' dtypes, zero where no token counts; and the logarithms of how
    many tokens they are of, (B or 1, groups) float32, -inf for none.
    """
    weights = torch.ones(1, len(group_ids), device=group_ids.device) if visible is None else visible.float()
    counts = weights.new_zeros(len(weights), groups).index_add_(1, group_ids, weights)
    means = list[torch.Tensor]()
    for x in tensors:
        exact = torch.promote_types(x.dtype, weights.dtype)
        total = torch.zeros(*x.shape[:2], groups, x.shape[3], device=x.device, dtype=exact)
        total.index_add_(2, group_ids, (x * weights[:, None, :, None]).to(total.dtype))
        means.append((total / counts.clamp(min=1)[:, None, :, None]).to(x.dtype))
    return means, counts.log()


def visible_keys(mask: torch.Tensor | None, batch: int, keys: int) -> torch.Tensor | None:
    """Return which keys a mask over keys shows, (batch, keys) bool; None without a mask.

    mask: (batch or 1, 1, 1, keys or 1) bool, leading dimensions may be missing. Raises BadAttentionInput for a mask
    that is not boolean or differs by head.
    """
    if mask is None:
        return None
    if mask.dtype != torch.bool or (mask.dim() == 4 and mask.shape[1] > 1):
        fault = f"a mask of shape {tuple(mask.shape)} and type {mask.dtype} with pooled groups"
        raise BadAttentionInput(fault, "Pass a boolean mask that is one for all heads, or leave out pooled=mean.")
    return mask.reshape(-1, mask.shape[-1]).expand(batch, keys)
