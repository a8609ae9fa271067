"""The judge: dense attention under the pattern's mask, straight from its ``mask_mod``. O(N²) memory, for tests."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from planner.layout import TokenLayout
from planner.pattern import Dense, Pattern, parse_pattern
from planner.plan import Decision, Plan
from runtime.attention_calls import AttentionCalls


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
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        mask = mask & attn_mask
    elif attn_mask is not None:
        mask = torch.where(mask, attn_mask, float("-inf"))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)


class MaskedDense(AttentionCalls):
    """While entered, an eager model's attention calls follow a plan, in order, each as masked dense attention.

    level: the noise level, where the plan depends on it.
    """

    def __init__(self, plan: Plan, level: float = 0.0) -> None:
        super().__init__(plan.decisions)
        self.level = level

    def attend(self, decision: Decision, given: dict[str, Any]) -> torch.Tensor:
        """Masked dense attention where the decision is sparse, head by head where heads differ."""
        if not decision.is_sparse:
            return F.scaled_dot_product_attention(**given)
        given.pop("dropout_p", None)
        rules = decision.rules.at(self.level)
        made = [_masked(rule.pattern, decision.layout, given) for rule in rules]
        out = made[0].clone()
        for rule, attended in zip(rules[1:], made[1:], strict=True):
            out[:, list(rule.heads)] = attended[:, list(rule.heads)]
        return out


def _masked(pattern: Pattern, layout: str, given: dict[str, Any]) -> torch.Tensor:
    if isinstance(pattern, Dense):
        return F.scaled_dot_product_attention(**given)
    return masked_dense(**given, layout=layout, pattern=str(pattern))
