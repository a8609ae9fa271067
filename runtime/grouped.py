"""Grouped attention with torch's own kernels: queries batched by group, their keys as contiguous runs.

The keys of a batch are views where they form one run and copied together where they do not: one buffer of at most
the pattern's keys, small enough to stay in cache, shared by all queries of the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from planner.errors import BadAttentionInput
from runtime.recipe import Recipe, Run, make_recipe


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
) -> torch.Tensor:
    """Attention of a sequence under a pattern; arguments as in ``scaled_dot_product_attention``.

    query (B, H, N, D), key (B, H', N, D), value (B, H', N, E) in the layout's own order -> (B, H, N, E).
    attn_mask: a mask over keys, (B or 1, H or 1, 1, N), boolean or additive. is_causal compares sequence indices.
    Raises BadAttentionInput.
    """
    recipe = make_recipe(layout, pattern, query.device)
    _check(query, key, value, attn_mask, is_causal, len(recipe.order), layout)
    q, k, v = (x.index_select(2, recipe.order) for x in (query, key, value))
    mask = None if attn_mask is None else attn_mask.expand(*attn_mask.shape[:-1], query.shape[2])
    mask = None if mask is None else mask.index_select(-1, recipe.order)
    out = query.new_empty(*query.shape[:3], value.shape[3])
    for (start, stop), runs in recipe.work:
        out[:, :, start:stop] = F.scaled_dot_product_attention(
            q[:, :, start:stop],
            _take(k, runs, 2),
            _take(v, runs, 2),
            attn_mask=_causal(recipe, (start, stop), runs) if is_causal else _take_mask(mask, runs),
            scale=scale,
            enable_gqa=enable_gqa,
        )
    return out.index_select(2, recipe.place)


def _take(x: torch.Tensor, runs: tuple[Run, ...], dim: int) -> torch.Tensor:
    pieces = [x.narrow(dim, start, stop - start) for start, stop in runs]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def _take_mask(mask: torch.Tensor | None, runs: tuple[Run, ...]) -> torch.Tensor | None:
    return None if mask is None else _take(mask, runs, -1)


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
