"""The operator that stands for a planned attention site in a graph: ``planner::grouped_attention``.

Layout and rules are its arguments, by their spellings, so a rewritten graph says what it does. It is registered with
the dispatcher itself: the decorator for custom operators costs 30 µs a call.
"""

from __future__ import annotations

from typing import Any

import torch

from planner.errors import NoGradient
from planner.runtime.attention.dispatch import attend, empty_output

_library = torch.library.Library("planner", "FRAGMENT")
_library.define(
    "grouped_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, bool is_causal, float? scale, "
    'bool enable_gqa, str layout, str rules, Tensor? noise=None, str stored="", '
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
    stored: str = "",
    kernel_patterns: str = "",
) -> torch.Tensor:
    """Attention under rules; shapes and arguments as in planner.runtime.attention.dispatch.attend."""
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
        stored=stored,
        kernel_patterns=kernel_patterns,
    )


def mask_of_keys(mask: torch.Tensor) -> torch.Tensor:
    """What a mask (…, queries, keys), alike for all heads, says of the keys, (…, 1, keys).

    Which masks are alike is told by planner.provenance.mask_structure.
    """
    return (mask[:, :1] if mask.dim() == 4 else mask).any(-2, keepdim=True)


def mask_of_queries(mask: torch.Tensor) -> torch.Tensor:
    """The queries that a mask (…, queries, keys), alike for all heads, lets in, (…, queries, 1)."""
    return (mask[:, :1] if mask.dim() == 4 else mask).any(-1, keepdim=True)


def _fake(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> torch.Tensor:
    return empty_output(query, value)


def _no_backward(ctx: Any, *gradients: torch.Tensor) -> None:
    raise NoGradient


class WithoutBackward(torch.autograd.Function):
    """A value as it is, whose gradient is refused: what a compiler lowered for inference would drop it in silence."""

    @staticmethod
    def forward(_ctx: Any, value: torch.Tensor, _anchor: torch.Tensor) -> torch.Tensor:
        """The value, which requires a gradient because the anchor does."""
        return value.view_as(value)

    backward = staticmethod(_no_backward)


_library.impl("grouped_attention", _attend, "CompositeExplicitAutograd")
torch.library.register_fake("planner::grouped_attention", _fake, lib=_library)
torch.library.register_autograd("planner::grouped_attention", _no_backward, lib=_library)

OPTIONS: dict[str, Any] = {"attn_mask": None, "is_causal": False, "scale": None, "enable_gqa": False}
"""What the operator takes of scaled_dot_product_attention's options, in its order, with their defaults."""

grouped_attention = torch.ops.planner.grouped_attention.default
"""The operator."""
