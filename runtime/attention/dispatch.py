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

from planner.patterns.dense import Dense
from planner.patterns.rules import Rule, Rules
from planner.runtime.attention.cpu import grouped_sdpa
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
    stored: str = "",
    kernel_patterns: str = "",
) -> torch.Tensor:
    """Attention under rules, by their spelling; arguments, shapes and errors as in grouped_sdpa (cpu.py).

    noise: the noise level, one float32, where the rules depend on it. On a GPU emitted kernels look at it themselves:
    neither the host nor a CUDA graph has to know it. stored: as in grouped_sdpa, where no kernel runs. kernel_patterns:
    as in planner.codegen.spec.launch_plan, where kernels run.
    """
    asked = Rules.parse(rules)
    reason = why_no_kernel(query, value) or _why_not_arguments(attn_mask, is_causal, scale)
    if reason is None:
        assert not stored, "kernels read the model's own order"
        assert noise is not None or not asked.levels, "rules that depend on the noise level were given none"
        mask = None if attn_mask is None else _key_mask(attn_mask, query.shape[0], key.shape[2])
        out = empty_output(query, value)
        return attention_under(
            query, key, value, layout, rules,
            key_mask=mask, scale=scale, noise=noise, kernel_patterns=kernel_patterns, out=out,
        )  # fmt: skip
    options: dict[str, Any] = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    made = _by_runs(query, key, value, layout, _open_rules(asked, noise), stored, options)
    if query.device.type != "cuda":
        return made
    _note(reason)
    return empty_output(query, value).copy_(made)


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
