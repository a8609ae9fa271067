"""Cost: what an attention site and the rest of a step take on a target, by roofline. No GPU needed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypedDict

import torch

from planner.capture.ops import Kind, info
from planner.patterns.base import Pattern
from planner.patterns.dense import Dense
from planner.patterns.density import attended_pairs, rules_density
from planner.patterns.layout import TokenLayout
from planner.patterns.rules import Rules
from planner.plan.site import AttentionSite
from planner.plan.target import Target

SMALL_GROUP = 128
"""Tokens under which a group does not fill a tile of queries."""

MEANS_TILE, MEANS_SHARE = 128, 0.4
"""Means of pooled groups that a kernel reads at once, and at what share of its rate, for the masks and biases that they
take. Fitted to an H100 at FLUX 1024², 2048² and 4096² (bench/results/rules.json).
"""

TILE = 64
"""Tokens that a kernel handles at once; a group fills whole tiles plus a tail."""


def attention_flops(site: AttentionSite, pairs: int) -> int:
    """Count the FLOPs of attention over so many (query, key) pairs: two products, a multiply and an add each."""
    return 4 * site.batch * site.heads * site.head_dim * pairs


def dense_seconds(site: AttentionSite, target: Target) -> float:
    """Predict the seconds of the site as dense attention."""
    flops = attention_flops(site, site.queries * site.keys)
    return _roofline(site, target, flops / target.dense_attention)


def sparse_seconds(site: AttentionSite, pattern: Pattern, target: Target) -> float:
    """Predict the seconds of the site under a pattern, and of moving tokens into group order where the target does."""
    layout = site.layout
    if isinstance(pattern, Dense) or not isinstance(layout, TokenLayout):
        return dense_seconds(site, target)
    global_pairs = layout.global_tokens * layout.tokens
    grouped = attention_flops(site, attended_pairs(pattern, layout) - global_pairs)
    cost = grouped / (target.sparse_attention * _group_share(pattern, layout, target)) / _tile_use(pattern)
    cost += attention_flops(site, global_pairs) / target.dense_attention
    seconds = _roofline(site, target, cost)
    if not target.raster_order:
        seconds += 2 * _bytes(site) / (target.bandwidth * 1e9)
    if pattern.pooled and not target.steps_per_group:
        seconds += _means_seconds(site, layout, math.prod(pattern.grid(layout.grid.sizes).counts), target)
    if target.steps_per_group:
        seconds += math.prod(pattern.grid(layout.grid.sizes).counts) * target.step_us * 1e-6
    return seconds


def _means_seconds(site: AttentionSite, layout: TokenLayout, groups: int, target: Target) -> float:
    """Predict the seconds of means beyond those of their pairs: a launch that reads keys and values, in whole tiles."""
    paid = -(-groups // MEANS_TILE) * MEANS_TILE / MEANS_SHARE - groups
    flops = attention_flops(site, round(layout.grid.tokens * paid))
    keys = 2 * site.batch * site.kv_heads * site.keys * site.head_dim * getattr(torch, site.dtype).itemsize
    products = flops / (target.sparse_attention * target.peak(site.dtype))
    return products + keys / (target.bandwidth * 1e9) + target.step_us * 1e-6


class Costs(TypedDict):
    """What a site costs under rules, on average over heads and noise levels, and as dense attention: see Decision."""

    density: float
    flops: int
    seconds: float
    dense_flops: int
    dense_seconds: float


def costs_under(rules: Rules, site: AttentionSite, target: Target) -> Costs:
    """Predict the costs of a site under rules on a target."""
    layout, shares, every = site.layout, rules.shares(site.heads), site.queries * site.keys
    pairs = sum(share * _pairs(site, rule.pattern) for rule, share in shares)
    return Costs(
        density=rules_density(rules, layout, site.heads) if isinstance(layout, TokenLayout) else 1.0,
        flops=round(attention_flops(site, 1) * pairs),
        seconds=sum(share * sparse_seconds(site, rule.pattern, target) for rule, share in shares),
        dense_flops=attention_flops(site, every),
        dense_seconds=dense_seconds(site, target),
    )


def _pairs(site: AttentionSite, pattern: Pattern) -> int:
    if isinstance(pattern, Dense) or not isinstance(site.layout, TokenLayout):
        return site.queries * site.keys
    return attended_pairs(pattern, site.layout)


def rest_of_step(nodes: Iterable[torch.fx.Node], target: Target) -> tuple[int, float]:
    """Predict the (FLOPs, seconds) of a graph's matrix products outside attention; elementwise work is not counted."""
    total_flops, seconds = 0, 0.0
    for node in nodes:
        flops, moved, dtype = _matrix_product(node)
        total_flops += flops
        if flops:
            seconds += max(flops / (target.peak(dtype) * target.matmul), moved / (target.bandwidth * 1e9))
    return total_flops, seconds


def _roofline(site: AttentionSite, target: Target, cost: float) -> float:
    """Predict the seconds of a site from its cost: FLOPs over the share of the peak at which they run."""
    step = 0 if target.steps_per_group else target.step_us * 1e-6
    return max(cost / target.peak(site.dtype), _bytes(site) / (target.bandwidth * 1e9)) + step


def _bytes(site: AttentionSite) -> int:
    """Count the bytes of queries, keys, values and output."""
    elements = site.batch * site.head_dim * 2 * (site.heads * site.queries + site.kv_heads * site.keys)
    return elements * getattr(torch, site.dtype).itemsize


def _group_share(pattern: Pattern, layout: TokenLayout, target: Target) -> float:
    """Return the share of the rate that a pattern's groups keep; groups of 64 tokens share a query tile in pairs."""
    tokens = math.prod(pattern.group)
    if tokens >= SMALL_GROUP:
        return 1.0
    goes_up = bool(pattern.grid(layout.grid.sizes).even_axes)
    makes_pairs = tokens == TILE and goes_up and pattern.reads_evenly and not any(pattern.front_pad)
    return target.groups_of_64[len(pattern.group) - 1] if makes_pairs else target.small_groups


def _tile_use(pattern: Pattern) -> float:
    """Return the share of the tiles' rows and columns that a whole group fills."""
    tokens = math.prod(pattern.group)
    return (tokens / (math.ceil(tokens / TILE) * TILE)) ** 2


def _matrix_product(node: torch.fx.Node) -> tuple[int, int, str]:
    """Return the (FLOPs, bytes, dtype) of a node; zeros if it is no matrix product."""
    known = info(node.target)
    if node.op != "call_function" or known.factors is None or len(node.args) <= max(known.factors):
        return 0, 0, ""
    factors: list[Any] = [node.args[position] for position in known.factors]
    x, weight, out = factors[0].meta["val"], factors[1].meta["val"], node.meta["val"]
    inner = weight[0].numel() if known.kind is Kind.CONVOLUTION else x.shape[-1]
    moved = sum(t.numel() * t.element_size() for t in (x, weight, out))
    return 2 * out.numel() * inner, moved, str(out.dtype).removeprefix("torch.")
