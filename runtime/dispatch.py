"""Dispatch: a planned attention runs by an emitted kernel on a GPU, and by contiguous runs on a CPU.

What no kernel can serve (a mask for each query, say) runs by torch's own attention, group by group. That is counted
under its reason, warned of once, and shown by ``planner.report``.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F

from runtime.grouped import grouped_sdpa
from runtime.kernels import attention, why_no_kernel
from runtime.launch import Gate

fallbacks: Counter[str] = Counter()
"""How often planned attention on a GPU ran without an emitted kernel, by reason."""


class NoKernelWarning(UserWarning):
    """Planned attention runs without an emitted kernel: right, and slower."""


def attend(
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
    noise: torch.Tensor | None = None,
    sparse_below: float = 1.0,
    stored: str = "",
) -> torch.Tensor:
    """Attention under a pattern; arguments, shapes and errors as in runtime.grouped.grouped_sdpa.

    noise: the noise level, one float32. Up to ``sparse_below`` the pattern applies, above it attention is dense. On a
    GPU emitted kernels look at it themselves: neither the host nor a CUDA graph has to know it. stored: as in
    grouped_sdpa, where no kernel runs.
    """
    reason = why_no_kernel(query, value) or _why_not_arguments(attn_mask, is_causal, scale)
    assert not stored or reason is not None, "kernels read the model's own order"
    mask = _key_mask(attn_mask, query.shape[0], key.shape[2]) if reason is None and attn_mask is not None else None
    if reason is None and noise is not None and noise.device.type == "cuda":
        out = empty_output(query, value)
        for spelled, above in (((layout, pattern), False), ((f"n:{query.shape[2]}", "dense"), True)):
            gate = Gate(noise, sparse_below, above)
            attention(query, key, value, *spelled, key_mask=mask, scale=scale, gate=gate, out=out)
        return out
    options: dict[str, Any] = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if noise is not None and not bool(noise <= sparse_below):
        return F.scaled_dot_product_attention(query, key, value, **options)
    if reason is None:
        return attention(query, key, value, layout, pattern, key_mask=mask, scale=scale)[0]
    made = grouped_sdpa(query, key, value, layout, pattern, **options, stored=stored)
    if query.device.type != "cuda":
        return made
    _note(reason)
    return empty_output(query, value).copy_(made)


def empty_output(query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Room for the output: on a GPU as the query lies in memory, so that heads beside channels stay there."""
    if query.device.type == "cuda" and query.shape[3] == value.shape[3]:
        return torch.empty_like(query)
    return query.new_empty(*query.shape[:3], value.shape[3])


def _why_not_arguments(mask: torch.Tensor | None, is_causal: bool, scale: float | None) -> str | None:
    if is_causal:
        return "kernels have no causal order of the sequence"
    if scale is not None and not scale > 0:
        return f"kernels take a positive scale, not {scale}"
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        return "kernels take boolean key masks, not additive ones"
    between = mask.shape[1:-1] if mask.dim() == 4 else mask.shape[:-1]
    return None if all(size == 1 for size in between) else "kernels take one mask for all queries and heads"


def _key_mask(mask: torch.Tensor, batch: int, keys: int) -> torch.Tensor:
    """(B or 1, 1, 1, M or 1) -> (B, M)."""
    return mask.reshape(mask.shape[0] if mask.dim() == 4 else 1, mask.shape[-1]).expand(batch, keys).contiguous()


def _note(reason: str) -> None:
    if not fallbacks[reason]:
        warnings.warn(f"planned attention runs without an emitted kernel: {reason}", NoKernelWarning, stacklevel=3)
    fallbacks[reason] += 1
