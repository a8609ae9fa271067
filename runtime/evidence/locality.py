"""Locality: the softmax mass of a model's own attention, by distance and under candidate patterns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch

from planner.capture.ops import SDPA
from planner.patterns.layout import TokenLayout
from planner.patterns.spelling import parse_pattern
from planner.plan.plan import Decision, Plan
from planner.runtime.eager.sdpa_mode import SdpaMode

QUERIES = 512
"""Queries to draw from a grid, the same at each call; a grid with fewer tokens has all of them drawn."""


@dataclass(frozen=True)
class SiteLocality:
    """The softmax mass of one call of a site, means over batch and drawn queries, float32 on the CPU.

    site: its name. by_distance: (heads, distances), mass on the grid's keys by Chebyshev distance in tokens; the
    remaining mass is on global tokens. uniform: (distances,), mass by distance if all keys of the grid had equal mass.
    recall: by the spelling of a pattern, (heads,), the mass on the keys that it reads.
    """

    site: str
    by_distance: torch.Tensor
    uniform: torch.Tensor
    recall: dict[str, torch.Tensor]


class RecordLocality(SdpaMode):
    """A mode that records the locality of every attention call of an eager model; results do not change.

    plan: any plan of the model for the same inputs; its decisions give the layouts, in the order of the calls.
    patterns: spellings of the patterns whose recall is computed. records: one for each call of a site with its own
    grid.
    """

    def __init__(self, plan: Plan, patterns: Sequence[str] = ()) -> None:
        super().__init__(cycle(plan.decisions))
        self.patterns = tuple(patterns)
        self.records = list[SiteLocality]()

    def attend(self, decision: Decision, arguments: dict[str, Any]) -> torch.Tensor:
        """Attend without a change, return (B, H, N, E), and record the locality."""
        layout = decision.own_grid
        if layout is not None:
            query, key = arguments["query"], arguments["key"]
            mask, scale = arguments.get("attn_mask"), arguments.get("scale")
            self.records.append(site_locality(decision.site, query, key, layout, self.patterns, mask, scale))
        return SDPA(**arguments)


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
    """Compute the locality of a site's attention under a layout with one grid; holds 512 rows of attention in float32.

    query: (B, H, N, D), key: (B, H', N, D). attn_mask: boolean or additive, broadcast to (B, H, N, N). scale: of the
    scores, 1/√D by default. patterns: spellings.
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
