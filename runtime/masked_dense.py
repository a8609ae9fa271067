"""The judge: dense attention under the pattern's mask, straight from its ``mask_mod``. O(N²) memory, for tests."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from planner.capture.call import Call
from planner.capture.hooks import uncompiled
from planner.patterns.base import Dense, Pattern, parse_pattern
from planner.patterns.layout import TokenLayout
from planner.plan.noise_level import NoiseLevel
from planner.plan.plan import Decision, Plan
from planner.runtime.attention.group_means import seen_keys
from planner.runtime.eager.sdpa_mode import AttentionCalls

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
    """What grouped_sdpa must equal; same arguments."""
    mask = pattern_mask(layout, pattern, query.device)
    if is_causal:
        mask = mask & torch.ones_like(mask).tril()
    mask = _both(mask, attn_mask)
    asked = parse_pattern(pattern)
    if asked.pooled:
        seen = seen_keys(attn_mask, key.shape[0], key.shape[2])
        key, value, mask = _with_means(key, value, mask, layout, asked, seen)
        mask = mask.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)


@lru_cache(maxsize=64)
def pattern_mask(layout: str, pattern: str, device: torch.device) -> torch.Tensor:
    """What a pattern reads exactly, (tokens, tokens)."""
    place = TokenLayout.parse(layout)
    index = torch.arange(place.tokens, device=device)
    return parse_pattern(pattern).mask_mod(place)(index[:, None], index[None, :])


def _with_means(
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    layout: str,
    pattern: Pattern,
    seen: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and values, followed by the means of all groups, and an additive mask over both."""
    place, near = TokenLayout.parse(layout), pattern_mask(layout, str(pattern), key.device)
    members = _members(layout, str(pattern), key.device).to(torch.promote_types(key.dtype, torch.float32))
    shown = members.new_ones(1, place.tokens) if seen is None else seen.to(members.dtype)
    weights = members * shown[:, None]  # (B or 1, groups, tokens)
    counts = weights.sum(2)
    key, value = (
        torch.cat([x, (weights[:, None] @ x.to(weights.dtype) / counts.clamp(min=1)[:, None, :, None]).to(x.dtype)], 2)
        for x in (key, value)
    )
    unread = torch.where(near[:, members.argmax(1)], float("-inf"), counts.log()[:, None, None])
    exact = torch.where(mask, 0.0, float("-inf")).to(unread.dtype).expand(len(unread), 1, -1, -1)
    pad = -key.shape[2] % 8  # torch's fastest kernel for masks wants rows of whole 16-byte pieces
    key, value = (F.pad(x, (0, 0, 0, pad)) for x in (key, value))
    return key, value, F.pad(torch.cat([exact, unread], 3), (0, pad), value=float("-inf"))


@lru_cache(maxsize=16)
def _members(layout: str, pattern: str, device: torch.device) -> torch.Tensor:
    """Which tokens a group holds, (groups, tokens)."""
    place = TokenLayout.parse(layout)
    numbers = torch.full((place.tokens,), -1)
    grid = parse_pattern(pattern).grid(place.grid.sizes).numbers()
    numbers[place.grid_start : place.grid_start + place.grid.tokens] = grid
    return (numbers == torch.arange(int(grid.max()) + 1)[:, None]).to(device)


class MaskedDense(AttentionCalls):
    """While entered, an eager model's attention calls follow a plan, in order, each as masked dense attention.

    level: the noise level, where the plan depends on it.
    """

    def __init__(self, plan: Plan, level: float = 0.0) -> None:
        super().__init__(plan.decisions)
        self.level = level

    def attend(self, decision: Decision, given: dict[str, Any]) -> torch.Tensor:
        """Masked dense attention where the decision is sparse at this level, head by head where heads differ."""
        rules = decision.rules.at(self.level)
        if all(isinstance(rule.pattern, Dense) for rule in rules):
            return F.scaled_dot_product_attention(**given)
        given.pop("dropout_p", None)
        tensors = tuple(given.pop(name) for name in ("query", "key", "value"))
        out = tensors[0].new_empty(*tensors[0].shape[:3], tensors[2].shape[3])
        for rule in rules:
            heads = list(rule.heads or range(decision.heads))
            kv = [head * decision.kv_heads // decision.heads for head in heads]
            mine = tensors[0][:, heads], tensors[1][:, kv], tensors[2][:, kv]
            options: dict[str, Any] = {**given, "enable_gqa": False}
            out[:, heads] = masked_dense(*mine, layout=decision.layout, pattern=str(rule.pattern), **options)
        return out


def masked_model(model: Model, plan: Plan) -> Model:
    """A twin of a model that follows a plan at every call, noise levels too, as masked dense attention."""
    twin, told = uncompiled(model), None if plan.noise is None else NoiseLevel.parse(plan.noise)

    def run(*args: Any, **kwargs: Any) -> Any:
        level = 0.0
        if told is not None:
            level = float(told.of(Call.of(model, args, kwargs).tensor(told.argument)))
        with MaskedDense(plan, level):
            return model._call_impl(*args, **kwargs)

    twin._compiled_call_impl = run
    return twin


def _both(mask: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
    """A mask together with the call's own, boolean or additive."""
    if given is None:
        return mask
    return mask & given if given.dtype == torch.bool else torch.where(mask, given, float("-inf"))
