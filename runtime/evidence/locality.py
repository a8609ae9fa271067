"""Locality: where the softmax mass of a model's own attention lies, by distance and under candidate patterns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F

from planner.patterns.base import parse_pattern
from planner.patterns.layout import TokenLayout
from planner.plan.plan import Decision, Plan
from planner.runtime.eager.sdpa_mode import SdpaMode

QUERIES = 512
"""Queries of the grid that are looked at, drawn once for each site; all of them where there are fewer."""


@dataclass(frozen=True)
class SiteLocality:
    """The attention of one call of a site, means over batch and queries of the grid.

    site: its name. by_distance: (heads, distances), mass on the grid's keys by Chebyshev distance in tokens; what is
    missing from 1 lies on global tokens. uniform: (distances,), the same if every grid key had equal mass. recall: by
    spelling of a pattern, (heads,), the mass that it keeps.
    """

    site: str
    by_distance: torch.Tensor
    uniform: torch.Tensor
    recall: dict[str, torch.Tensor]


class RecordLocality(SdpaMode):
    """While entered, every attention call of an eager model leaves what was found; its results do not change.

    plan: any plan of the model for the same inputs: it tells the layouts, in the order of the calls. patterns:
    spellings of the patterns whose recall is wanted. Sites without a grid of their own leave nothing.
    """

    def __init__(self, plan: Plan, patterns: Sequence[str] = ()) -> None:
        super().__init__(cycle(plan.decisions))
        self.patterns = tuple(patterns)
        self.found = list[SiteLocality]()

    def attend(self, decision: Decision, given: dict[str, Any]) -> torch.Tensor:
        """Dense attention, as asked, with what was found put down."""
        layout = decision.own_grid
        if layout is not None:
            query, key, mask = given["query"], given["key"], given.get("attn_mask")
            self.found.append(site_locality(decision.site, query, key, layout, self.patterns, mask, given.get("scale")))
        return F.scaled_dot_product_attention(**given)


@torch.no_grad()
def site_locality(
    site: str,
    query: torch.Tensor,
    key: torch.Tensor,
    layout: TokenLayout,
    patterns: Sequence[str],
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> SiteLocality:
    """Evidence of query and key (batch, heads, tokens, head_dim) under a layout with one grid.

    attn_mask: boolean or additive, broadcast to (batch, heads, tokens, tokens). Memory: 512 rows of attention.
    """
    device = query.device
    keys = torch.arange(layout.tokens, device=device)
    generator = torch.Generator().manual_seed(0)
    rows = layout.grid_start + torch.randperm(layout.grid.tokens, generator=generator)[:QUERIES].to(device)
    repeats = query.shape[1] // key.shape[1]
    scores = query[:, :, rows].float() @ key.repeat_interleave(repeats, 1).float().mT
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        mask = attn_mask if attn_mask.shape[-2] == 1 else attn_mask[..., rows, :]
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    mass = scores.softmax(-1).mean(0)
    pairs = zip(layout.coordinates(rows), layout.coordinates(keys), strict=True)
    distance = torch.stack([(q[:, None] - k[None, :]).abs() for q, k in pairs]).amax(0)
    distance = torch.where(layout.is_global(keys), max(layout.grid.sizes), distance)
    bins = max(layout.grid.sizes) + 1
    by_distance = torch.zeros(len(mass), bins, device=device)
    by_distance.scatter_add_(1, distance.flatten().expand(len(mass), -1), mass.flatten(1))
    counts = torch.bincount(distance.flatten(), minlength=bins)[:-1].float()
    recall = dict[str, torch.Tensor]()
    for spelling in patterns:
        allowed = parse_pattern(spelling).mask_mod(layout)(rows[:, None], keys[None, :])
        recall[spelling] = (mass * allowed).sum(-1).mean(-1).cpu()
    return SiteLocality(site, (by_distance[:, :-1] / len(rows)).cpu(), (counts / counts.sum()).cpu(), recall)
