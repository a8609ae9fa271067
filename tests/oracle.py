"""The judge of kernels: masked dense attention in float64, straight from ``mask_mod``, with its log-sum-exp."""

import math

import torch

from planner.patterns.layout import TokenLayout
from planner.patterns.spelling import parse_pattern

ROWS = 1024
"""Query rows to work out at once: their scores are what takes memory."""


def means_of(tokens, layout, pattern):
    """(which tokens are of which group, (groups, tokens) in float64, the first token of each group)"""
    grid = pattern.grid(layout.grid.sizes)
    belongs = torch.zeros(math.prod(grid.counts), tokens, dtype=torch.float64)
    belongs[grid.numbers(), layout.grid_start + torch.arange(layout.grid.tokens)] = 1
    return belongs, belongs.argmax(1)


def masked_dense(q, k, v, layout, pattern, rows=None, mask=None, scale=None):
    """(output, log-sum-exp) for some query rows or all; a query that reads nothing gives zeros and -inf.

    mask: (batch, keys) boolean. With pooled groups each mean counts as often as its group has visible tokens. Key
    heads are shared out among query heads in order.
    """
    rows = torch.arange(q.shape[2], device=q.device) if rows is None else rows
    every = torch.arange(k.shape[2], device=q.device)
    reads = torch.ones(len(rows), len(every), dtype=torch.bool, device=q.device)
    if pattern != "dense":
        reads = parse_pattern(pattern).mask_mod(TokenLayout.parse(layout))(rows[:, None], every[None, :])
    seen = torch.ones(len(q), len(every), dtype=torch.bool, device=q.device) if mask is None else mask
    bias = torch.zeros(len(q), len(every), dtype=torch.float64, device=q.device).masked_fill(~seen, -math.inf)
    k, v = (x.double() for x in (k, v))
    if pattern != "dense" and parse_pattern(pattern).pooled:
        means, firsts = means_of(len(every), TokenLayout.parse(layout), parse_pattern(pattern))
        means, firsts = (means.to(q.device) * seen[:, None]), firsts.to(q.device)
        counts = means.sum(2)
        k, v = (torch.cat([x, (means / counts[..., None].clamp(min=1))[:, None] @ x], 2) for x in (k, v))
        is_grid = ~TokenLayout.parse(layout).is_global(rows)
        reads = torch.cat([reads, ~reads[:, firsts] & is_grid[:, None]], 1)
        bias = torch.cat([bias, counts.log()], 1)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    outputs, sums = [], []
    for some, read in zip(rows.split(ROWS), reads.split(ROWS), strict=True):
        scores = q[:, :, some].double() @ k.transpose(2, 3) * (scale or q.shape[3] ** -0.5)
        scores = (scores + bias[:, None, None, :]).masked_fill(~read, -math.inf)
        sums.append(scores.logsumexp(-1))
        outputs.append((scores - sums[-1].nan_to_num(neginf=0.0)[..., None]).exp() @ v)
    return torch.cat(outputs, 2), torch.cat(sums, 2)


def of_heads(spec, q, k, v, mask=None, served=None):
    """(output, log-sum-exp) of a kernel of several patterns, NaN for heads that it does not serve.

    served: the number of the pattern of each slot that is served; all follow the first if it is left out.
    """
    out, lse = torch.full_like(q, math.nan).double(), torch.full(q.shape[:3], math.nan).double()
    for number, pattern in enumerate(spec.patterns):
        made, sums = masked_dense(q, k, v, spec.layout, str(pattern), mask=mask)
        mine = [number == 0 if served is None else served.get(slot) == number for slot in range(spec.slots)]
        mine = torch.tensor(mine).view(spec.batch, spec.heads, 1)
        out, lse = torch.where(mine[..., None], made, out), torch.where(mine, sums, lse)
    return out, lse


def mask(pattern, layout):
    """Tabulate the pattern's mask, (tokens, tokens) bool."""
    index = torch.arange(layout.tokens)
    return pattern.mask_mod(layout)(index[:, None], index[None, :])


def group_of(layout, grid):
    """Return the group of each token by its number, -1 for global tokens."""
    index = torch.arange(layout.tokens)
    number = torch.zeros_like(index)
    for group, count in zip(grid.group_of(layout.coordinates(index)), grid.counts, strict=True):
        number = number * count + group
    return torch.where(layout.is_global(index), -1, number)
