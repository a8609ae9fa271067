"""Dispatch: a planned attention runs by an emitted kernel on a GPU, and by contiguous runs on a CPU.

On a GPU, what no kernel supports (a mask for each query, say) runs by torch's own attention, group by group. That is a
fallback: it is counted under its reason, warned of once, and shown by ``planner.report``.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from planner.capture.ops import SDPA
from planner.patterns.dense import Dense
from planner.patterns.rules import Rule, Rules
from planner.runtime.attention.cpu import empty_output, grouped_sdpa
from planner.runtime.kernels.select import attention_under, why_no_kernel

fallbacks: Counter[str] = Counter()
"""How often planned attention on a GPU ran without an emitted kernel, by reason."""


class NoKernelWarning(UserWarning):
    """Planned attention runs without an emitted kernel: right, and slower."""


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: str,
    rules: str,
    *,
    attn_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    noise: torch.Tensor | None = None,
    token_order: str = "",
    kernel_patterns: str = "",
) -> torch.Tensor:
    """Attend under rules, by their spelling; tensors, options and errors as in grouped_sdpa (cpu.py).

    query: (B, H, N, D), key: (B, H', N, D), value: (B, H', N, E) -> (B, H, N, E) in the query's dtype.
    noise: the noise level, () float32, where the rules depend on it; emitted kernels read it on the device, so that
    neither the host nor a CUDA graph has to know it. token_order: as in grouped_sdpa, where no kernel runs.
    kernel_patterns: as in planner.codegen.spec.launch_plan, where kernels run. Raises BadAttentionInput.
    """
    parsed = Rules.parse(rules)
    assert noise is not None or not parsed.levels, "rules that depend on the noise level were given none"
    reason = why_no_kernel(query, value) or _why_not_arguments(attn_mask, is_causal, scale)
    if reason is None:
        assert not token_order, "kernels read the layout's order"
        mask = None if attn_mask is None else _key_mask(attn_mask, query.shape[0], key.shape[2])
        out = empty_output(query, value)
        return attention_under(
            query, key, value, layout, rules,
            key_mask=mask, scale=scale, noise=noise, kernel_patterns=kernel_patterns, out=out,
        )  # fmt: skip
    options: dict[str, Any] = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if query.device.type == "cuda":
        _count_fallback(reason)
    return _by_runs(query, key, value, layout, _active_rules(parsed, noise), token_order, options)


@lru_cache(maxsize=1024)
def _index(heads: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(heads, device=device)


def _by_runs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: str,
    rules: Sequence[Rule],
    token_order: str,
    options: dict[str, Any],
) -> torch.Tensor:
    """Attend under each of the rules by torch's own attention, its heads together."""

    def run(rule: Rule, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        if isinstance(rule.pattern, Dense):
            return SDPA(q, k, v, **options)
        return grouped_sdpa(q, k, v, layout, str(rule.pattern), **options, token_order=token_order)

    if len(rules) == 1:
        return run(rules[0], query, key, value, options)
    out = empty_output(query, value)
    for rule in rules:
        mask = options["attn_mask"]
        if mask is not None and mask.dim() == 4 and mask.shape[1] > 1:
            mask = mask.index_select(1, _index(rule.heads, query.device))
        own_options = options | {"attn_mask": mask, "enable_gqa": False}
        attended = run(rule, *take_heads(query, key, value, rule.heads), own_options)
        out.index_copy_(1, _index(rule.heads, query.device), attended)
    return out


def take_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Select some heads of the queries, and for each of them its own head of keys and values.

    query: (B, H, N, D), key: (B, H', M, D), value: (B, H', M, E); returned with ``len(heads)`` in place of H and H'.
    """
    per_kv = query.shape[1] // key.shape[1]
    query_heads = _index(tuple(heads), query.device)
    kv_heads = _index(tuple(head // per_kv for head in heads), query.device)
    return query.index_select(1, query_heads), key.index_select(1, kv_heads), value.index_select(1, kv_heads)


def _active_rules(rules: Rules, noise: torch.Tensor | None) -> list[Rule]:
    """Select the rules that apply at a noise level; synchronises with the level's device."""
    return [rule for rule in rules.rules if noise is None or bool(_is_active(rule, noise))]


def _is_active(rule: Rule, noise: torch.Tensor) -> torch.Tensor:
    """Tell whether a rule applies at a noise level, () bool on the level's device; NaN counts as high."""
    after = noise.new_ones((), dtype=torch.bool) if rule.above == 0 else ~(noise <= rule.above)
    return after if rule.up_to == 1 else after & (noise <= rule.up_to)


def _why_not_arguments(mask: torch.Tensor | None, is_causal: bool, scale: float | None) -> str | None:
    """Say why kernels do not take a call's options, None if they do."""
    if is_causal:
        return "kernels have no causal order of the sequence"
    if scale is not None and not scale > 0:
        return f"kernels take a positive scale, not {scale}"
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        return "kernels take boolean key masks, not additive ones"
    heads_and_queries = mask.shape[1:-1] if mask.dim() == 4 else mask.shape[:-1]
    return None if all(size == 1 for size in heads_and_queries) else "kernels take one mask for all queries and heads"


def _key_mask(mask: torch.Tensor, batch: int, keys: int) -> torch.Tensor:
    """Expand a mask over keys: (B or 1, 1, 1, M or 1) -> (B, M)."""
    return mask.reshape(mask.shape[0] if mask.dim() == 4 else 1, mask.shape[-1]).expand(batch, keys).contiguous()


def _count_fallback(reason: str) -> None:
    """Count a fallback under its reason, and warn of the first."""
    if not fallbacks[reason]:
        warnings.warn(f"planned attention runs without an emitted kernel: {reason}", NoKernelWarning, stacklevel=3)
    fallbacks[reason] += 1
