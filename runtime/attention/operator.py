"""The operator that stands for a planned attention site in a graph: ``planner::grouped_attention``.

Layout and rules are its arguments, by their spellings, so a rewritten graph says what it does. It is registered with
the dispatcher itself: the decorator for custom operators costs 30 µs a call.
"""

from __future__ import annotations

from typing import Any

import torch

from planner.errors import NoGradient
from planner.runtime.attention.cpu import empty_output
from planner.runtime.attention.dispatch import attend

_library = torch.library.Library("planner", "FRAGMENT")
_library.define(
    "grouped_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, bool is_causal, float? scale, "
    'bool enable_gqa, str layout, str rules, Tensor? noise=None, str token_order="", '
    'str kernel_patterns="") -> Tensor',
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    layout: str,
    rules: str,
    noise: torch.Tensor | None = None,
    token_order: str = "",
    kernel_patterns: str = "",
) -> torch.Tensor:
    """Attend under rules; shapes and arguments as in planner.runtime.attention.dispatch.attend."""
    return attend(
        query,
        key,
        value,
        layout,
        rules,
        attn_mask=attn_mask,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
        noise=noise,
        token_order=token_order,
        kernel_patterns=kernel_patterns,
    )


def mask_of_keys(mask: torch.Tensor) -> torch.Tensor:
    """Return which keys any query may read: (B, H, queries, keys) bool -> (B, 1, 1, keys), or without B and H.

    The mask must be one for all heads, and its rows equal or empty (planner.provenance.mask_structure).
    """
    return (mask[:, :1] if mask.dim() == 4 else mask).any(-2, keepdim=True)


def mask_of_queries(mask: torch.Tensor) -> torch.Tensor:
    """Return which queries may read any key: (B, H, queries, keys) bool -> (B, 1, queries, 1), or without B and H.

    The mask is one for all heads.
    """
    return (mask[:, :1] if mask.dim() == 4 else mask).any(-1, keepdim=True)


def _fake(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> torch.Tensor:
    return empty_output(query, value)


def _no_backward(ctx: Any, *gradients: torch.Tensor) -> None:
    raise NoGradient


class WithoutBackward(torch.autograd.Function):
    """The identity, whose backward pass raises NoGradient: a graph lowered for inference would drop the gradient."""

    @staticmethod
    def forward(_ctx: Any, value: torch.Tensor, _anchor: torch.Tensor) -> torch.Tensor:
        """Return a view of the value, of any shape, which requires a gradient because the anchor does."""
        return value.view_as(value)

    backward = staticmethod(_no_backward)


_library.impl("grouped_attention", _attend, "CompositeExplicitAutograd")
torch.library.register_fake("planner::grouped_attention", _fake, lib=_library)
torch.library.register_autograd("planner::grouped_attention", _no_backward, lib=_library)

OPTIONS: dict[str, Any] = {"attn_mask": None, "is_causal": False, "scale": None, "enable_gqa": False}
"""The options of scaled_dot_product_attention that the operator takes, in its order, with their defaults."""

grouped_attention = torch.ops.planner.grouped_attention.default
"""The operator."""
