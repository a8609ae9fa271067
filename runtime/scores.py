"""Scores of candidate patterns on a site's own queries, keys and values, exact for the queries looked at.

Keys are sorted into cells, the common refinement of all candidates' groups, so that each candidate reads whole cells.
One pass over the keys then serves all candidates: what they read are sums over cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from planner.layout import TokenLayout
from planner.pattern import Pattern, parse_pattern

WORKING_SET = 2**26
"""Numbers to hold at once: 256 MiB of float32."""


TINY = 1e-30
"""Less softmax mass than this is none: what reads no key gives zeros, as in torch's own attention."""


@dataclass(frozen=True)
class Cells:
    """Which keys lie in which cell, and which cells each candidate reads for each of the queries looked at.

    rows: (queries,) sequence indices. keys: (cells, size) sequence indices, real: the same shape, false where a cell is
    smaller. reads: (queries, candidates, cells), 1 or 0. far: for each candidate with means of far groups the place in
    ``groupings`` of its groups. groupings: (cells, groups), 1 where a cell lies in a group.
    """

    rows: torch.Tensor
    keys: torch.Tensor
    real: torch.Tensor
    reads: torch.Tensor
    far: tuple[int | None, ...]
    groupings: tuple[torch.Tensor, ...]


@lru_cache(maxsize=32)
def make_cells(layout_text: str, candidates: tuple[str, ...], queries: int, device: torch.device) -> Cells:
    """The cells of a layout with one grid for some candidates; the queries drawn of the grid are always the same."""
    layout, patterns = TokenLayout.parse(layout_text), [parse_pattern(text) for text in candidates]
    drawn = torch.randperm(layout.grid.tokens, generator=torch.Generator().manual_seed(0))[:queries]
    rows = layout.grid_start + drawn.sort().values
    numbered = {(pattern.group, pattern.offset): _numbers(layout, pattern) for pattern in patterns}
    _, cell = torch.stack(list(numbered.values())).unique(dim=1, return_inverse=True)
    sizes = cell.bincount()
    keys = torch.zeros(len(sizes), int(sizes.max()), dtype=torch.int64)
    real = torch.arange(keys.shape[1]) < sizes[:, None]
    keys[real] = cell.argsort(stable=True)
    first = keys[:, 0]
    reads = torch.stack([pattern.mask_mod(layout)(rows[:, None], first[None, :]) for pattern in patterns], dim=1)
    kinds = list(dict.fromkeys((pattern.group, pattern.offset) for pattern in patterns if pattern.far))
    groupings = tuple(_membership(numbered[kind][first]).to(device) for kind in kinds)
    far = tuple(kinds.index((pattern.group, pattern.offset)) if pattern.far else None for pattern in patterns)
    return Cells(rows.to(device), keys.to(device), real.to(device), reads.float().to(device), far, groupings)


def _membership(groups: torch.Tensor) -> torch.Tensor:
    """(cells, groups), 1 where a cell lies in a group; no group for cells of global tokens, which are numbered -1."""
    return (groups[:, None] == torch.arange(int(groups.max()) + 1)).float()


def _numbers(layout: TokenLayout, pattern: Pattern) -> torch.Tensor:
    """The number of each token's group, -1 for global tokens."""
    numbers = torch.full((layout.tokens,), -1)
    grid = pattern.grid(layout.grid.sizes).numbers() if pattern.group else torch.zeros(layout.grid.tokens)
    numbers[layout.grid_start : layout.grid_start + layout.grid.tokens] = grid.to(numbers.dtype)
    return numbers


@torch.no_grad()
def score(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cells: Cells,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(recall, error, power): (candidates, heads) twice and (heads,), as planner.evidence.SiteEvidence has them.

    query (B, H, N, D), key and value (B, H', N, D). attn_mask: over keys, (B or 1, H or 1, 1, N), boolean or additive.
    """
    batch, heads, _, channels = query.shape
    per_kv = heads // key.shape[1]
    factor = query.shape[3] ** -0.5 if scale is None else scale
    count, (number, size) = cells.reads.shape[1], cells.keys.shape
    recall, error = torch.zeros(2, count, heads, device=query.device)
    power = torch.zeros(heads, device=query.device)
    step = max(1, WORKING_SET // (batch * number * (channels + size)))
    for head in range(heads):
        k, v = (x[:, head // per_kv, cells.keys].float() for x in (key, value))  # (B, cells, size, D)
        hidden = _hidden(attn_mask, head, cells, query.device)
        seen = (hidden > float("-inf"))[:, 0].float()  # (B or 1, cells, size)
        means = [_means(members, k, v, seen) for members in cells.groupings]
        for at in range(0, len(cells.rows), step):
            rows, reads = cells.rows[at : at + step], cells.reads[at : at + step]
            scores = torch.einsum("bqd,bcsd->bqcs", query[:, head, rows].float() * factor, k) + hidden
            weights = (scores - scores.amax((2, 3), keepdim=True)).exp()
            mass = weights.sum(3) / weights.sum((2, 3))[..., None]
            sums = torch.einsum("bqcs,bcsd->qcbd", weights, v) / weights.sum((2, 3)).T[:, None, :, None]
            kept = torch.einsum("qkc,bqc->qkb", reads, mass)
            dense = sums.sum(1)
            read, total = torch.einsum("qkc,qcbd->qkbd", reads, sums), kept.clone()
            shift = scores.amax((2, 3)) + weights.sum((2, 3)).log()
            for number_of, (members, (keys, values, sizes)) in enumerate(zip(cells.groupings, means, strict=True)):
                mine = [place for place, grouping in enumerate(cells.far) if grouping == number_of]
                unread = 1 - torch.einsum("qkc,cg->qkg", reads[:, mine], members).clamp(max=1)
                near = torch.einsum("bqd,bgd->bqg", query[:, head, rows].float() * factor, keys)
                worth = (near + sizes.log()[:, None] - shift[..., None]).exp()
                total[:, mine] += torch.einsum("qkg,bqg->qkb", unread, worth)
                read[:, mine] += torch.einsum("qkg,bqg,bgd->qkbd", unread, worth, values)
            recall[:, head] += kept.mean(2).sum(0)
            error[:, head] += (read / total.clamp(min=TINY)[..., None] - dense[:, None]).square().sum(3).mean(2).sum(0)
            power[head] += dense.square().sum(2).mean(1).sum()
    return recall / len(cells.rows), error / len(cells.rows), power / len(cells.rows)


def _means(
    members: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean keys and values of groups, (B, groups, D), and of how many tokens they are, (B or 1, groups)."""
    sizes = seen.sum(2) @ members
    keys, values = (
        torch.einsum("cg,bcsd->bgd", members, x * seen[..., None]) / sizes.clamp(min=1)[..., None] for x in (k, v)
    )
    return keys, values, sizes


def _hidden(mask: torch.Tensor | None, head: int, cells: Cells, device: torch.device) -> torch.Tensor:
    """What is added to the scores of a head's keys, -inf for those that do not exist or are masked.

    (B or 1, 1, cells, size)
    """
    added = torch.zeros(cells.real.shape, device=device).masked_fill(~cells.real, float("-inf"))[None, None]
    if mask is None:
        return added
    mask = mask.view(*[1] * (4 - mask.dim()), *mask.shape)[:, head if mask.dim() == 4 and mask.shape[1] > 1 else 0]
    mask = mask.expand(-1, 1, int(cells.keys.max()) + 1)[:, :, cells.keys]
    return added.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else added + mask.float()
