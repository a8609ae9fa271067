"""The reference for tests: dense attention under a pattern's mask, straight from its ``mask_mod``, in O(N²) memory."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from planner.capture.call import Call
from planner.capture.hooks import uncompiled
from planner.capture.ops import SDPA
from planner.patterns.base import Pattern
from planner.patterns.dense import Dense
from planner.patterns.layout import TokenLayout
from planner.patterns.spelling import parse_pattern
from planner.plan.noise_level import NoiseLevel
from planner.plan.plan import Decision, Plan
from planner.runtime.attention.cpu import empty_output
from planner.runtime.attention.group_means import visible_keys
from planner.runtime.eager.sdpa_mode import SdpaMode

Model = TypeVar("Model", bound=torch.nn.Module)


def masked_dense(
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
    """Attend densely under a pattern's mask: what grouped_sdpa must equal.

    query: (B, H, N, D), key: (B, H', N, D), value: (B, H', N, E) -> (B, H, N, E) in the query's dtype.
    attn_mask: (B or 1, H or 1, N or 1, N), boolean or additive; with pooled groups as in grouped_sdpa. Other arguments
    are those of grouped_sdpa.
    """
    mask = pattern_mask(layout, pattern, query.device)
    if is_causal:
        mask = mask & torch.ones_like(mask).tril()
    mask = _combine(mask, attn_mask)
    parsed = parse_pattern(pattern)
    if parsed.pooled:
        visible = visible_keys(attn_mask, key.shape[0], key.shape[2])
        key, value, mask = _with_means(key, value, mask, layout, parsed, visible)
        mask = mask.to(query.dtype)
    return SDPA(query, key, value, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)


@lru_cache(maxsize=64)
def pattern_mask(layout: str, pattern: str, device: torch.device) -> torch.Tensor:
    """Evaluate a pattern's ``mask_mod`` for all pairs, (tokens, tokens) bool: what it reads exactly, not as means."""
    parsed = TokenLayout.parse(layout)
    index = torch.arange(parsed.tokens, device=device)
    return parse_pattern(pattern).mask_mod(parsed)(index[:, None], index[None, :])


def _with_means(
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    layout: str,
    pattern: Pattern,
    visible: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Append to keys and values the means of all groups, and make an additive mask over both.

    mask: (…, N, N) bool. visible: (B, N) bool. Returns (B, H', N + groups + padding, D or E) and a mask of that length.
    """
    near = pattern_mask(layout, str(pattern), key.device)
    members = _members(layout, str(pattern), key.device).to(torch.promote_types(key.dtype, torch.float32))
    counted = members.new_ones(1, key.shape[2]) if visible is None else visible.to(members.dtype)
    weights = members * counted[:, None]  # (B or 1, groups, tokens)
    counts = weights.sum(2)
    key, value = (
        torch.cat([x, (weights[:, None] @ x.to(weights.dtype) / counts.clamp(min=1)[:, None, :, None]).to(x.dtype)], 2)
        for x in (key, value)
    )
    pooled = torch.where(near[:, members.argmax(1)], float("-inf"), counts.log()[:, None, None])
    exact = torch.where(mask, 0.0, float("-inf")).to(pooled.dtype).expand(len(pooled), 1, -1, -1)
    pad = -key.shape[2] % 8  # torch's fastest kernel for masks takes rows of whole multiples of 16 bytes
    key, value = (F.pad(x, (0, 0, 0, pad)) for x in (key, value))
    return key, value, F.pad(torch.cat([exact, pooled], 3), (0, pad), value=float("-inf"))


@lru_cache(maxsize=16)
def _members(layout: str, pattern: str, device: torch.device) -> torch.Tensor:
    """Tell which tokens each group holds, (groups, tokens) bool."""
    parsed = TokenLayout.parse(layout)
    group_ids = torch.full((parsed.tokens,), -1)
    grid_ids = parse_pattern(pattern).grid(parsed.grid.sizes).numbers()
    group_ids[parsed.grid_start : parsed.grid_start + parsed.grid.tokens] = grid_ids
    return (group_ids == torch.arange(int(grid_ids.max()) + 1)[:, None]).to(device)


class MaskedDense(SdpaMode):
    """While entered, an eager model's attention calls follow a plan, in order, each as masked dense attention.

    plan: a plan of the model for the same inputs. level: the noise level, where the plan depends on it.
    """

    def __init__(self, plan: Plan, level: float = 0.0) -> None:
        super().__init__(plan.decisions)
        self.level = level

    def attend(self, decision: Decision, arguments: dict[str, Any]) -> torch.Tensor:
        """Attend densely under a mask where the decision is sparse at this level, head by head where heads differ."""
        rules = decision.rules.at(self.level)
        if all(isinstance(rule.pattern, Dense) for rule in rules):
            return SDPA(**arguments)
        options = {**arguments, "enable_gqa": False}
        options.pop("dropout_p", None)
        query, key, value = (options.pop(name) for name in ("query", "key", "value"))
        out = empty_output(query, value)
        for rule in rules:
            heads = list(rule.heads or range(decision.heads))
            kv_heads = [head * decision.kv_heads // decision.heads for head in heads]
            own = query[:, heads], key[:, kv_heads], value[:, kv_heads]
            out[:, heads] = masked_dense(*own, layout=decision.layout, pattern=str(rule.pattern), **options)
        return out


def masked_model(model: Model, plan: Plan) -> Model:
    """Return a twin of a model that follows a plan at every call, noise levels too, as masked dense attention."""
    twin, noise = uncompiled(model), None if plan.noise is None else NoiseLevel.parse(plan.noise)

    def run(*args: Any, **kwargs: Any) -> Any:
        level = 0.0
        if noise is not None:
            level = float(noise.of(Call.of(model, args, kwargs).tensor(noise.argument)))
        with MaskedDense(plan, level):
            return model._call_impl(*args, **kwargs)

    twin._compiled_call_impl = run
    return twin


def _combine(mask: torch.Tensor, attn_mask: torch.Tensor | None) -> torch.Tensor:
    """Restrict a boolean mask to the call's own, boolean or additive; the result is of the latter's kind."""
    if attn_mask is None:
        return mask
    return mask & attn_mask if attn_mask.dtype == torch.bool else torch.where(mask, attn_mask, float("-inf"))
