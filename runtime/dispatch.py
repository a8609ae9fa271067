"""Dispatch: a planned attention runs by an emitted kernel on a GPU, and by contiguous runs on a CPU.

What no kernel can serve (a mask for each query, say) runs by torch's own attention, group by group. That is counted
under its reason, warned of once, and shown by ``planner.report``.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from planner.pattern import Dense
from planner.rules import Rule, Rules
from runtime.far import far_attention, far_groups, merge
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
    rules: str,
    *,
    attn_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    noise: torch.Tensor | None = None,
    stored: str = "",
) -> torch.Tensor:
    """Attention under rules, by their spelling; arguments, shapes and errors as in runtime.grouped.grouped_sdpa.

    noise: the noise level, one float32, where the rules depend on it. On a GPU emitted kernels look at it themselves:
    neither the host nor a CUDA graph has to know it. stored: as in grouped_sdpa, where no kernel runs.
    """
    asked = Rules.parse(rules)
    reason = why_no_kernel(query, value) or _why_not_arguments(attn_mask, is_causal, scale)
    if reason is None:
        assert not stored, "kernels read the model's own order"
        mask = None if attn_mask is None else _key_mask(attn_mask, query.shape[0], key.shape[2])
        return _by_kernels(query, key, value, layout, asked, mask, scale, noise)
    options: dict[str, Any] = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    made = _by_runs(query, key, value, layout, _open_rules(asked, noise), stored, options)
    if query.device.type != "cuda":
        return made
    _note(reason)
    return empty_output(query, value).copy_(made)


def _by_kernels(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: str,
    rules: Rules,
    mask: torch.Tensor | None,
    scale: float | None,
    noise: torch.Tensor | None,
) -> torch.Tensor:
    """A launch for each rule; those whose noise level it is not do nothing."""
    out = empty_output(query, value)
    for rule in rules.rules:
        gate, is_far, in_place = _gate(rule, noise), rule.pattern.far, _evenly(rule.heads, query, key)
        tensors, mine = (query, key, value), out
        if in_place is not None:
            tensors, mine = (query[:, in_place], key[:, in_place], value[:, in_place]), out[:, in_place]
        elif rule.heads:
            tensors = take_heads(*tensors, rule.heads)
            # A kernel whose gate is closed leaves its output as it is.
            mine = empty_output(*tensors[::2]) if gate is None else out.index_select(1, _index(rule.heads, out.device))
        site = (f"n:{query.shape[2]}", "dense") if isinstance(rule.pattern, Dense) else (layout, str(rule.pattern.near))
        _, sums = attention(*tensors, *site, key_mask=mask, scale=scale, gate=gate, out=mine, returns_lse=is_far)
        if sums is not None:
            _add_far(mine, sums, tensors, layout, rule, mask, scale, None if gate is None else _is_open(rule, noise))
        if rule.heads and in_place is None:
            out.index_copy_(1, _index(rule.heads, out.device), mine)
    return out


def _evenly(heads: tuple[int, ...], query: torch.Tensor, key: torch.Tensor) -> slice | None:
    """Heads that kernels can read and write where they lie; None for all of them, and for those that they cannot."""
    if not heads or query.shape[0] > 1 or query.shape[1] != key.shape[1]:
        return None
    first, second = (*heads, heads[0] + 1)[:2]
    evenly = slice(first, max(heads) + 1, max(1, second - first))
    return evenly if heads == tuple(range(query.shape[1]))[evenly] else None


def _add_far(
    near: torch.Tensor,
    sums: torch.Tensor,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    layout: str,
    rule: Rule,
    mask: torch.Tensor | None,
    scale: float | None,
    is_open: torch.Tensor | None,
) -> None:
    """Merge the means of far groups into what a kernel made, in place, where the rule applies."""
    groups = far_groups(layout, str(rule.pattern), near.device)
    far, far_sums = far_attention(*tensors, groups, mask, near.shape[3] ** -0.5 if scale is None else scale)
    at = near[:, :, groups.grid]
    merged = merge(at, sums[:, :, groups.grid], far, far_sums)
    near[:, :, groups.grid] = merged if is_open is None else torch.where(is_open, merged, at)


@lru_cache(maxsize=1024)
def _index(heads: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(heads, device=device)


def _by_runs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: str,
    rules: Sequence[Rule],
    stored: str,
    options: dict[str, Any],
) -> torch.Tensor:
    """The rules that apply, by torch's own attention."""

    def run(rule: Rule, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
        if isinstance(rule.pattern, Dense):
            return F.scaled_dot_product_attention(q, k, v, **given)
        return grouped_sdpa(q, k, v, layout, str(rule.pattern), **given, stored=stored)

    if len(rules) == 1:
        return run(rules[0], query, key, value, options)
    out = query.new_empty(*query.shape[:3], value.shape[3])
    for rule in rules:
        mask = options["attn_mask"]
        if mask is not None and mask.dim() == 4 and mask.shape[1] > 1:
            mask = mask.index_select(1, _index(rule.heads, query.device))
        given = options | {"attn_mask": mask, "enable_gqa": False}
        attended = run(rule, *take_heads(query, key, value, rule.heads), given)
        out.index_copy_(1, _index(rule.heads, query.device), attended)
    return out


def take_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Some heads of the queries, and for each of them its own head of keys and values."""
    per_kv = query.shape[1] // key.shape[1]
    mine = _index(tuple(heads), query.device)
    shared = _index(tuple(head // per_kv for head in heads), query.device)
    return query.index_select(1, mine), key.index_select(1, shared), value.index_select(1, shared)


def _open_rules(rules: Rules, noise: torch.Tensor | None) -> list[Rule]:
    """The rules that apply at a noise level, which the host waits for."""
    return [rule for rule in rules.rules if noise is None or bool(_is_open(rule, noise))]


def _is_open(rule: Rule, noise: torch.Tensor | None) -> torch.Tensor:
    """Whether a rule applies at a noise level, on the level's device; what is no number counts as high."""
    assert noise is not None, "rules that depend on the noise level were given none"
    after = noise.new_ones((), dtype=torch.bool) if rule.above == 0 else ~(noise <= rule.above)
    return after if rule.up_to == 1 else after & (noise <= rule.up_to)


def _gate(rule: Rule, noise: torch.Tensor | None) -> Gate | None:
    """How a kernel tells whether its rule applies; None where it always does."""
    if (rule.above, rule.up_to) == (0, 1):
        return None
    assert noise is not None, "rules that depend on the noise level were given none"
    if rule.above == 0:
        return Gate(noise, rule.up_to)
    if rule.up_to == 1:
        return Gate(noise, rule.above, above=True)
    return Gate((~_is_open(rule, noise)).float(), 0.5)


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
