"""Grouped attention with torch's own kernels: queries batched by group, their keys as contiguous runs.

The keys of a group are a view where they form one run and copied together where they do not. On a CPU one group at a
time is attended, so that its keys stay in cache. On a GPU groups of one shape go together until they fill it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from planner.capture.ops import SDPA
from planner.errors import BadAttentionInput
from planner.patterns.layout import TokenLayout
from planner.runtime.attention.gather_plan import GatherPlan, WorkItem, make_gather_plan
from planner.runtime.attention.group_hierarchy import Run
from planner.runtime.attention.group_means import group_means, visible_keys

ROWS = {"cpu": 1, "cuda": 2048}
"""Query rows to attend together. With 24 heads 2048 make three waves of 128-row tiles on an H100's 132 SMs."""


def grouped_sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: str,
    pattern: str,
    *,
    attn_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    token_order: str = "",
) -> torch.Tensor:
    """Attend over a sequence under a pattern; arguments as in ``torch.nn.functional.scaled_dot_product_attention``.

    query: (B, H, N, D), key: (B, H', N, D), value: (B, H', N, E), of one floating dtype, in the layout's own order.
    attn_mask: a mask over keys, (B or 1, H or 1, 1, N or 1), boolean or additive; with pooled groups boolean and one
    for all heads. is_causal: compares sequence indices; not with pooled groups. scale: of the scores, 1/√D by default.
    token_order: spelling of the GroupHierarchy in whose grouped order tensors, mask and output are, in place of the
    layout's order.

    Returns (B, H, N, E) in the query's dtype. Raises BadAttentionInput.
    """
    plan = make_gather_plan(layout, pattern, query.device, token_order)
    _check(query, key, value, attn_mask, is_causal, len(plan.order), layout)
    if plan.pooled and is_causal:
        raise BadAttentionInput("is_causal with pooled groups", "Leave out pooled=mean.")
    mask = None if attn_mask is None else _key_mask(attn_mask, query)
    q, k, v = query, key, value
    if not token_order:
        q, k, v = (x.index_select(2, plan.order) for x in (q, k, v))
        mask = None if mask is None else mask.index_select(-1, plan.order)
    pooled = _PooledGroups.of(plan, k, v, mask, layout) if plan.pooled else None
    result = empty_output(query, value)
    out = result if token_order else result.new_empty(result.shape)
    for batch in plan.batches(1 if is_causal else ROWS.get(query.device.type, 1)):
        start, stop = batch[0].queries[0], batch[-1].queries[1]
        keys, values, visible = _gather_keys(k, v, mask, batch)
        if is_causal:
            visible = _causal(plan, (start, stop), batch[0].keys)
        if pooled is not None:
            keys, values, visible = pooled.beside(keys, values, visible, [plan.pooled[item.keys] for item in batch])
        attended = SDPA(
            _split(q[:, :, start:stop], len(batch)),
            keys,
            values,
            attn_mask=visible,
            scale=scale,
            enable_gqa=enable_gqa,
        )
        out[:, :, start:stop] = attended.unflatten(0, (-1, len(batch))).transpose(1, 2).flatten(2, 3)
    return out if token_order else result.index_copy_(2, plan.order, out)


def empty_output(query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Allocate the output, (B, H, N, E) for a query (B, H, N, D) and a value (B, H', N, E), in the query's dtype.

    Its dimensions lie in memory as the query's do, as those of torch's own attention: what a model makes of the output
    without a copy (``transpose(1, 2).view``) it can make of this one.
    """
    if query.shape[3] == value.shape[3]:
        return torch.empty_like(query)
    order = sorted(range(4), key=lambda dim: (-query.stride(dim), dim))
    shape = (*query.shape[:3], value.shape[3])
    empty = query.new_empty([shape[dim] for dim in order])
    return empty.permute([order.index(dim) for dim in range(4)])


@dataclass(frozen=True)
class _PooledGroups:
    """Mean keys and values of all groups, (B, H', groups, D or E), and log of their sizes, (B or 1, groups) float32."""

    keys: torch.Tensor
    values: torch.Tensor
    log_sizes: torch.Tensor

    @staticmethod
    def of(plan: GatherPlan, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, layout: str) -> _PooledGroups:
        """Average keys, (B, H', N, D), and values, (B, H', N, E), in grouped order, as far as a mask shows them."""
        assert plan.group_ids is not None
        start = TokenLayout.parse(layout).grid_start
        grid = slice(start, start + len(plan.group_ids))
        visible = visible_keys(mask, len(k), k.shape[2])
        groups = len(next(iter(plan.pooled.values())))
        (keys, values), log_sizes = group_means(
            [k[:, :, grid], v[:, :, grid]], plan.group_ids, groups, None if visible is None else visible[:, grid]
        )
        return _PooledGroups(keys, values, log_sizes)

    def beside(
        self, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, pooled: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Append to the keys, values and mask of some work items the means of the groups that they pool.

        keys, values: (B * items, H', n, D or E). mask: (B * items, 1, 1, n) bool. pooled: (groups,) bool each.
        Returns all three with n + groups in place of n, the mask additive.
        """
        keys, values = (
            torch.cat([own, means.repeat_interleave(len(pooled), 0)], 2)
            for own, means in ((keys, self.keys), (values, self.values))
        )
        bias = torch.where(torch.stack(pooled), self.log_sizes[:, None], float("-inf"))
        bias = bias.expand(len(keys) // len(pooled), -1, -1).reshape(len(keys), 1, 1, -1).to(keys.dtype)
        own = keys.new_zeros(len(keys), 1, 1, keys.shape[2] - bias.shape[3])
        if mask is not None:
            own = own.masked_fill(~mask, float("-inf"))
        return keys, values, torch.cat([own, bias], 3)


def _gather_keys(
    k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, batch: tuple[WorkItem, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Gather the keys, values and mask of a batch: (B * items, H', n, D or E) and (B * items, H or 1, 1, n)."""
    runs = tuple(run for item in batch for run in item.keys)
    keys, values = (_split(_take(x, runs, 2), len(batch)) for x in (k, v))
    if mask is None:
        return keys, values, None
    return keys, values, _split(_take(mask, runs, -1).transpose(2, 3), len(batch)).transpose(2, 3)


def _split(x: torch.Tensor, items: int) -> torch.Tensor:
    """Move items from tokens to the batch: (B, H, items * n, D) -> (B * items, H, n, D)."""
    return x.unflatten(2, (items, -1)).transpose(1, 2).flatten(0, 1)


def _take(x: torch.Tensor, runs: tuple[Run, ...], dim: int) -> torch.Tensor:
    """Join some runs along a dimension, without a copy where there is one."""
    parts = [x.narrow(dim, start, stop - start) for start, stop in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _key_mask(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Expand a mask over keys to all its dimensions, (B, H or 1, 1, N)."""
    mask = mask.view(*[1] * (4 - mask.dim()), *mask.shape)
    return mask.expand(query.shape[0], mask.shape[1], 1, query.shape[2])


def _causal(plan: GatherPlan, queries: Run, keys: tuple[Run, ...]) -> torch.Tensor:
    """Compare sequence indices, (queries, keys) bool."""
    return plan.order[queries[0] : queries[1], None] >= _take(plan.order, keys, 0)[None, :]


def _check(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    tokens: int,
    layout: str,
) -> None:
    shapes = [tuple(x.shape) for x in (query, key, value)]
    if any(len(shape) != 4 or shape[2] != tokens for shape in shapes):
        raise BadAttentionInput(f'shapes {shapes} are not (B, H, {tokens}, D), as "{layout}" says', "Plan again.")
    if mask is not None and (
        is_causal or (mask.dim() > 1 and mask.shape[-2] != 1) or mask.shape[-1] not in (1, tokens)
    ):
        fault = f"a mask of shape {tuple(mask.shape)} with is_causal={is_causal}"
        raise BadAttentionInput(fault, f"Pass a mask over the {tokens} keys, (B, 1, 1, {tokens}), or is_causal.")
