"""The operator that stands for a planned attention site in a graph: ``planner::grouped_attention``.

Layout and pattern are its arguments, by their spellings, so a rewritten graph says what it does.
"""

from __future__ import annotations

from typing import Any

import torch

from planner.errors import NoGradient
from runtime.dispatch import attend, empty_output


@torch.library.custom_op("planner::grouped_attention", mutates_args=())
def grouped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    layout: str,
    pattern: str,
) -> torch.Tensor:
    """Attention under a pattern; shapes and arguments as in runtime.dispatch.attend."""
    return attend(
        query,
        key,
        value,
        layout,
        pattern,
        attn_mask=attn_mask,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
    )


@grouped_attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> torch.Tensor:
    return empty_output(query, value)


def _no_backward(ctx: Any, gradient: torch.Tensor) -> None:
    raise NoGradient


grouped_attention.register_autograd(_no_backward)
