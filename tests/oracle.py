"""The judge of kernels: masked dense attention in float64, straight from ``mask_mod``, with its log-sum-exp."""

import math

import torch

from planner.layout import TokenLayout
from planner.pattern import parse_pattern


def masked_dense(q, k, v, layout, pattern, rows=None, mask=None, scale=None):
    """(output, log-sum-exp) for some query rows or all; a query that reads nothing gives zeros and -inf.

    mask: (batch, keys) boolean. Key heads are shared out among query heads in order.
    """
    rows = torch.arange(q.shape[2], device=q.device) if rows is None else rows
    every = torch.arange(k.shape[2], device=q.device)
    reads = torch.ones(len(rows), len(every), dtype=torch.bool, device=q.device)
    if pattern != "dense":
        reads = parse_pattern(pattern).mask_mod(TokenLayout.parse(layout))(rows[:, None], every[None, :])
    reads = reads[None, None] if mask is None else reads & mask[:, None, None, :]
    k, v = (x.double().repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q[:, :, rows].double() @ k.transpose(2, 3) * (scale or q.shape[3] ** -0.5)
    scores = scores.masked_fill(~reads, -math.inf)
    lse = scores.logsumexp(-1)
    return (scores - lse.nan_to_num(neginf=0.0)[..., None]).exp() @ v, lse
