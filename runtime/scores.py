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

WORKING_SET = 3 * 2**26
"""Numbers to hold at once: 768 MiB of float32, all 24 heads of FLUX at 1024²."""


TINY = 1e-30
"""Less softmax mass than this is none: what reads no key gives zeros, as in torch's own attention."""


@dataclass(frozen=True)
class Cells:
    """Which keys lie in which cell, and which cells each candidate reads for each of the queries looked at.

    rows: (queries,) sequence indices. keys: (cells, size) sequence indices, real: the same shape, false where a cell is
    smaller. reads: (queries, candidates, cells), 1 or 0. groupings: for each kind of groups whose means are read
    (cells, groups), 1 where a cell lies in a group. far: for each of these the candidates that read them.
    """

    rows: torch.Tensor
    keys: torch.Tensor
    real: torch.Tensor
    reads: torch.Tensor
    groupings: tuple[torch.Tensor, ...]
    far: tuple[torch.Tensor, ...]


@lru_cache(maxsize=32)
def make_cells(layout_text: str, candidates: tuple[str, ...], queries: int, device: torch.device) -> Cells:
    """The cells of a layout with one grid for some candidates; the queries drawn of the grid are always the same."""
    layout, patterns = TokenLayout.parse(layout_text), [parse_pattern(text) for text in candidates]
    drawn = torch.randperm(layout.grid.tokens, generator=torch.Generator().manual_seed(0))[:queries]
    rows = layout.grid_start + drawn.sort().values
    numbered = {(pattern.group, pattern.offset): _numbers(layout, pattern) for pattern in patterns}
    cell = _cut(torch.stack(list(numbered.values())).unique(dim=1, return_inverse=True)[1], layout)
    sizes = cell.bincount()
    keys = torch.zeros(len(sizes), int(sizes.max()), dtype=torch.int64)
    real = torch.arange(keys.shape[1]) < sizes[:, None]
    keys[real] = cell.argsort(stable=True)
    first = keys[:, 0]
    reads = torch.stack([pattern.mask_mod(layout)(rows[:, None], first[None, :]) for pattern in patterns], dim=1)
    reading = [(pattern.group, pattern.offset) if pattern.far else None for pattern in patterns]
    kinds = [kind for kind in dict.fromkeys(reading) if kind is not None]
    groupings = tuple(_membership(numbered[kind][first]).to(device) for kind in kinds)
    far = tuple(torch.tensor([at for at, each in enumerate(reading) if each == kind], device=device) for kind in kinds)
    return Cells(rows.to(device), keys.to(device), real.to(device), reads.float().to(device), groupings, far)


def _cut(cell: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
    """Cells of global tokens cut up, so that none is larger than the largest of the grid."""
    sizes = cell.bincount()
    grid = cell[layout.grid_start : layout.grid_start + layout.grid.tokens]
    most = int(sizes[grid].max())
    order = cell.argsort(stable=True)
    within = torch.empty_like(cell)
    within[order] = torch.arange(len(cell)) - (sizes.cumsum(0) - sizes)[cell[order]]
    pieces = torch.stack([cell, within // most])
    return pieces.unique(dim=1, return_inverse=True)[1]


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
    (queries, count, number), size = cells.reads.shape, cells.keys.shape[1]
    recall, error = torch.zeros(2, count, heads, device=query.device)
    power = torch.zeros(heads, device=query.device)
    per_query = batch * (number * (channels + size) + count * (channels + number))
    rows = max(1, min(queries, WORKING_SET // per_query))
    step = max(1, min(heads, WORKING_SET // (rows * per_query)))
    for head in range(0, heads, step):
        mine = slice(head, min(head + step, heads))
        shared = torch.arange(heads, device=query.device)[mine] // per_kv
        k, v = (x[:, shared][:, :, cells.keys].float() for x in (key, value))  # (B, h, cells, size, D)
        hidden = _hidden(attn_mask, mine, cells, query.device)
        means = [_means(members, k, v, hidden) for members in cells.groupings]
        for at in range(0, queries, rows):
            q = query[:, mine, cells.rows[at : at + rows]].float() * factor
            for total, found in zip((recall, error, power), _sums(q, k, v, hidden, means, cells, at), strict=True):
                total[..., mine] += found / queries
    return recall, error, power


Means = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Mean keys and values of groups, (B, h, groups, D), and the logarithms of how many tokens they are of."""


def _sums(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    hidden: torch.Tensor,
    means: list[Means],
    cells: Cells,
    at: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums over some queries, from the at-th on, of the recall, the error and the power of some heads.

    q (B, h, q, D), scaled; k and v (B, h, cells, size, D).
    """
    reads = cells.reads[at : at + q.shape[2]]
    scores = (q @ k.flatten(2, 3).mT).unflatten(3, k.shape[2:4]) + hidden[:, :, None]  # (B, h, q, cells, size)
    peak = scores.amax((3, 4))
    weights = (scores - peak[..., None, None]).exp_()
    norm = weights.sum((3, 4))
    kept = torch.einsum("qkc,bhqc->bhqk", reads, weights.sum(4)) / norm[..., None]
    sums = weights.transpose(2, 3) @ v / norm[:, :, None, :, None]  # (B, h, cells, q, D)
    dense = sums.sum(2)
    read, total = torch.einsum("qkc,bhcqd->bhqkd", reads, sums), kept.clone()
    for mine, members, (keys, values, sizes) in zip(cells.far, cells.groupings, means, strict=True):
        unread = 1 - (reads.index_select(1, mine) @ members).clamp(max=1)  # (q, candidates, groups)
        worth = (q @ keys.mT + sizes[:, :, None] - (peak + norm.log())[..., None]).exp_()
        taken = unread * worth[:, :, :, None]
        total.index_add_(3, mine, taken.sum(4))
        read.index_add_(3, mine, (taken.flatten(2, 3) @ values).unflatten(2, taken.shape[2:4]))
    change = read / total.clamp(min=TINY)[..., None] - dense[:, :, :, None]
    recalls, errors = (x.mean(0).sum(1).T for x in (kept, change.square_().sum(4)))
    return recalls, errors, dense.square().sum(3).mean(0).sum(1)


def _means(members: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor) -> Means:
    seen = (hidden > float("-inf")).float()  # (B or 1, h or 1, cells, size)
    sizes = seen.sum(3) @ members
    keys, values = (members.mT @ (x * seen[..., None]).sum(3) / sizes.clamp(min=1)[..., None] for x in (k, v))
    return keys, values, sizes.log()


def _hidden(mask: torch.Tensor | None, heads: slice, cells: Cells, device: torch.device) -> torch.Tensor:
    """What is added to the scores of some heads' keys, -inf for those that do not exist or are masked.

    (B or 1, h or 1, cells, size)
    """
    added = torch.zeros(cells.real.shape, device=device).masked_fill(~cells.real, float("-inf"))[None, None]
    if mask is None:
        return added
    mask = mask.view(*[1] * (4 - mask.dim()), *mask.shape)[:, :, 0]
    mask = mask[:, heads] if mask.shape[1] > 1 else mask
    mask = mask.expand(-1, -1, int(cells.keys.max()) + 1)[:, :, cells.keys]
    return added.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else added + mask.float()
