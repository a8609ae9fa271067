"""The judge: dense attention under the pattern's mask, straight from its ``mask_mod``. O(N²) memory, for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from planner.layout import TokenLayout
from planner.pattern import parse_pattern
from planner.plan import Plan


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


class MaskedDense(TorchFunctionMode):
    """While entered, an eager model's attention calls follow a plan, in order, each as masked dense attention."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.decisions = iter(plan.decisions)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        decision = next(self.decisions)
        if not decision.is_sparse:
            return func(*args, **(kwargs or {}))
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given: dict[str, Any] = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        given.pop("dropout_p", None)
        return masked_dense(**given, layout=decision.layout, pattern=decision.pattern)
