"""Grouped attention with torch's own kernels: queries batched by group, their keys as contiguous runs.

The keys of a group are a view where they form one run and copied together where they do not. On a CPU one group at a
time is attended, so that its keys stay in cache. On a GPU groups of one shape go together until they fill it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from planner.errors import BadAttentionInput
from planner.patterns.layout import TokenLayout
from planner.runtime.attention.gather_plan import Recipe, Run, make_recipe
from planner.runtime.attention.group_means import group_means, seen_keys

ROWS = {"cpu": 1, "cuda": 2048}
"""Query rows to attend together. With 24 heads 2048 make three waves of 128-row tiles on an H100's 132 processors."""


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
    stored: str = "",
) -> torch.Tensor:
    """Attention of a sequence under a pattern; arguments as in ``scaled_dot_product_attention``.

    query (B, H, N, D), key (B, H', N, D), value (B, H', N, E) in the layout's own order -> (B, H, N, E).
    attn_mask: a mask over keys, (B or 1, H or 1, 1, N), boolean or additive. is_causal compares sequence indices.
    With means of far groups the mask is boolean and one for all heads, and there is no causal order.
    stored: tensors, mask and output are in the stored order of these groups (gather_plan.py) instead of
    the layout's.
    Raises BadAttentionInput.
    """
    recipe = make_recipe(layout, pattern, query.device, stored)
    _check(query, key, value, attn_mask, is_causal, len(recipe.order), layout)
    if recipe.unread and is_causal:
        raise BadAttentionInput("is_causal with means of far groups", "Leave out pooled=mean.")
    mask = None if attn_mask is None else _key_mask(attn_mask, query)
    q, k, v = query, key, value
    if not stored:
        q, k, v = (x.index_select(2, recipe.order) for x in (q, k, v))
        mask = None if mask is None else mask.index_select(-1, recipe.order)
    far = _Far.of(recipe, k, v, mask, layout) if recipe.unread else None
    out = query.new_empty(*query.shape[:3], value.shape[3])
    for batch in recipe.batches(1 if is_causal else ROWS.get(query.device.type, 1)):
        start, stop = batch[0][0][0], batch[-1][0][1]
        runs = tuple(run for _, keys in batch for run in keys)
        keys, values = (_split(_take(x, runs, 2), len(batch)) for x in (k, v))
        visible = _causal(recipe, (start, stop), runs) if is_causal else _split_mask(mask, runs, len(batch))
        if far is not None:
            keys, values, visible = far.beside(keys, values, visible, [recipe.unread[keys] for _, keys in batch])
        attended = F.scaled_dot_product_attention(
            _split(q[:, :, start:stop], len(batch)),
            keys,
            values,
            attn_mask=visible,
            scale=scale,
            enable_gqa=enable_gqa,
        )
        out[:, :, start:stop] = attended.unflatten(0, (-1, len(batch))).transpose(1, 2).flatten(2, 3)
    return out if stored else out.index_select(2, recipe.place)


@dataclass(frozen=True)
class _Far:
    """The means of all groups, and the logarithms of their sizes, (B or 1, groups)."""

    keys: torch.Tensor
    values: torch.Tensor
    sizes: torch.Tensor

    @staticmethod
    def of(recipe: Recipe, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, layout: str) -> _Far:
        """From keys, values and mask in stored order."""
        assert recipe.numbers is not None
        start = TokenLayout.parse(layout).grid_start
        at = slice(start, start + len(recipe.numbers))
        seen = seen_keys(mask, len(k), k.shape[2])
        groups = len(next(iter(recipe.unread.values())))
        (keys, values), sizes = group_means(
            [k[:, :, at], v[:, :, at]], recipe.numbers, groups, None if seen is None else seen[:, at]
        )
        return _Far(keys, values, sizes)

    def beside(
        self, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, unread: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Keys, values and mask of some groups' queries, with the means of what they do not read."""
        keys, values = (
            torch.cat([near, far.repeat_interleave(len(unread), 0)], 2)
            for near, far in ((keys, self.keys), (values, self.values))
        )
        bias = torch.where(torch.stack(unread), self.sizes[:, None], float("-inf"))
        bias = bias.expand(len(keys) // len(unread), -1, -1).reshape(len(keys), 1, 1, -1).to(keys.dtype)
        near = keys.new_zeros(len(keys), 1, 1, keys.shape[2] - bias.shape[3])
        if mask is not None:
            near = near.masked_fill(~mask, float("-inf"))
        return keys, values, torch.cat([near, bias], 3)


def _split(x: torch.Tensor, groups: int) -> torch.Tensor:
    """(B, H, groups * n, D) -> (B * groups, H, n, D)."""
    return x.unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1)


def _split_mask(mask: torch.Tensor | None, runs: tuple[Run, ...], groups: int) -> torch.Tensor | None:
    """The mask over the keys of each group, (B * groups, H or 1, 1, n)."""
    return None if mask is None else _split(_take(mask, runs, -1).transpose(2, 3), groups).transpose(2, 3)


def _take(x: torch.Tensor, runs: tuple[Run, ...], dim: int) -> torch.Tensor:
    pieces = [x.narrow(dim, start, stop - start) for start, stop in runs]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def _key_mask(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """A mask over keys with all its dimensions: (B, H or 1, 1, N)."""
    mask = mask.view(*[1] * (4 - mask.dim()), *mask.shape)
    return mask.expand(query.shape[0], mask.shape[1], 1, query.shape[2])


def _causal(recipe: Recipe, queries: Run, runs: tuple[Run, ...]) -> torch.Tensor:
    return recipe.order[queries[0] : queries[1], None] >= _take(recipe.order, runs, 0)[None, :]


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
