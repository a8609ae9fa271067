"""The judge: dense attention under the pattern's mask, straight from its ``mask_mod``. O(N²) memory, for tests."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from planner.capture import Call
from planner.layout import TokenLayout
from planner.noise import NoiseLevel
from planner.pattern import Dense, parse_pattern
from planner.plan import Decision, Plan
from planner.rules import Rules
from runtime.attention_calls import AttentionCalls

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
    index = torch.arange(query.shape[2], device=query.device)
    mask = parse_pattern(pattern).mask_mod(TokenLayout.parse(layout))(index[:, None], index[None, :])
    if is_causal:
        mask = mask & (index[:, None] >= index[None, :])
    mask = _both(mask, attn_mask)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)


@lru_cache(maxsize=32)
def rules_mask(layout: str, rules: str, level: float, heads: int, device: torch.device) -> torch.Tensor:
    """What each head of a site reads at a noise level: (heads or 1, tokens, tokens)."""
    place, asked = TokenLayout.parse(layout), Rules.parse(rules).at(level)
    index = torch.arange(place.tokens, device=device)
    masks = [rule.pattern.mask_mod(place)(index[:, None], index[None, :]) for rule in asked]
    if not asked[0].heads:
        return masks[0][None]
    mask = masks[0].new_empty(heads, place.tokens, place.tokens)
    for rule, each in zip(asked, masks, strict=True):
        mask[list(rule.heads)] = each
    return mask


class MaskedDense(AttentionCalls):
    """While entered, an eager model's attention calls follow a plan, in order, each as masked dense attention.

    level: the noise level, where the plan depends on it.
    """

    def __init__(self, plan: Plan, level: float = 0.0) -> None:
        super().__init__(plan.decisions)
        self.level = level

    def attend(self, decision: Decision, given: dict[str, Any]) -> torch.Tensor:
        """Masked dense attention where the decision is sparse at this level."""
        rules = decision.rules
        if all(isinstance(rule.pattern, Dense) for rule in rules.at(self.level)):
            return F.scaled_dot_product_attention(**given)
        above = max([0.0, *(edge for edge in rules.levels if edge < self.level)])
        level = min([1.0, *(edge for edge in rules.levels if edge > above)])  # one mask for the whole range
        mask = rules_mask(decision.layout, decision.pattern, level, decision.heads, given["query"].device)
        if given.get("is_causal"):
            mask = mask & torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).tril()
        options: dict[str, Any] = {**given, "is_causal": False, "attn_mask": _both(mask, given.get("attn_mask"))}
        return F.scaled_dot_product_attention(**options)


def masked_model(model: Model, plan: Plan) -> Model:
    """A twin of a model that follows a plan at every call, noise levels too, as masked dense attention."""
    twin, told = copy.copy(model), None if plan.noise is None else NoiseLevel.parse(plan.noise)

    def run(*args: Any, **kwargs: Any) -> Any:
        level = 0.0
        if told is not None:
            level = float(told.of(dict(Call.of(model, args, kwargs).tensors)[told.argument]))
        with MaskedDense(plan, level):
            return model._call_impl(*args, **kwargs)

    twin._compiled_call_impl = run
    return twin


def _both(mask: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
    """A mask together with the call's own, boolean or additive."""
    if given is None:
        return mask
    return mask & given if given.dtype == torch.bool else torch.where(mask, given, float("-inf"))
