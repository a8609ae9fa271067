"""Scores of candidate patterns on a site's own queries, keys and values, exact for the queries looked at.

Keys are sorted into cells, the common refinement of all candidates' groups, and one pass over the keys makes the sums
of each cell. What a candidate reads is then a sum over some of the cells, which are far fewer than the keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from planner.patterns.base import Pattern, parse_pattern
from planner.patterns.layout import TokenLayout

WORKING_SET = 3 * 2**26
"""Numbers to hold at once: 768 MiB of float32, all 24 heads of FLUX at 1024²."""


TINY = 1e-30
"""Less softmax mass than this is none: what reads no key gives zeros, as in torch's own attention."""


Pairs = tuple[torch.Tensor, torch.Tensor]
"""Places of some candidates, and of their readings."""


@dataclass(frozen=True)
class Kind:
    """One kind of groups, of which candidates read the means.

    members: (cells, groups), 1 where a cell lies in a group. readings: those of this kind; unread: (queries, these
    readings, groups), true where a query reads no key of a group. far: candidates and their readings among these.
    """

    members: torch.Tensor
    readings: slice
    unread: torch.Tensor
    far: Pairs


@dataclass(frozen=True)
class Candidates:
    """Some candidates, and which keys lie in which cell.

    queries: (queries,) sequence indices of those looked at. keys: (cells, size) sequence indices, real: the same shape,
    false where a cell is smaller. reads: (queries, readings, cells), true where a query reads a cell. near: candidates
    that read no means, and their readings. kinds: those that do.
    """

    queries: torch.Tensor
    count: int
    keys: torch.Tensor
    real: torch.Tensor
    reads: torch.Tensor
    near: Pairs
    kinds: tuple[Kind, ...]

    def numbers(self, channels: int) -> int:
        """How many numbers are held at once for each query of each head."""
        cells, size = self.keys.shape
        means = max((math.prod(kind.unread.shape[1:]) for kind in self.kinds), default=0)
        return cells * (2 * channels + size) + 2 * self.reads.shape[1] * channels + means


@lru_cache(maxsize=32)
def make_candidates(layout_text: str, texts: tuple[str, ...], queries: int, device: torch.device) -> Candidates:
    """Candidates for a layout with one grid; the queries drawn of the grid are always the same."""
    layout, patterns = TokenLayout.parse(layout_text), [parse_pattern(text) for text in texts]
    drawn = torch.randperm(layout.grid.tokens, generator=torch.Generator().manual_seed(0))[:queries]
    rows = (layout.grid_start + drawn.sort().values).to(device)
    alike = dict[tuple[tuple[int, ...], ...], dict[int, Pattern]]()
    for place, pattern in enumerate(patterns):
        alike.setdefault((pattern.group, pattern.offset), {})[place] = pattern
    numbered = [_numbers(layout, next(iter(members.values()))) for members in alike.values()]
    keys, real = _cells(layout, numbered)
    readings, kinds = list[Pattern](), list[Kind]()
    for members, numbers in zip(alike.values(), numbered, strict=True):
        own = list(dict.fromkeys(pattern.near for pattern in members.values()))
        far = [(place, own.index(pattern.near)) for place, pattern in members.items() if pattern.pooled]
        if far:
            is_in = numbers[keys[:, 0], None] == torch.arange(int(numbers.max()) + 1)
            unread = ~_reads(layout, own, rows, keys[is_in.int().argmax(0), 0].to(device))
            mine = slice(len(readings), len(readings) + len(own))
            kinds.append(Kind(is_in.float().to(device), mine, unread, _pairs(far, device)))
        readings += own
    near = [(place, readings.index(pattern)) for place, pattern in enumerate(patterns) if not pattern.pooled]
    keys, real = keys.to(device), real.to(device)
    reads = _reads(layout, readings, rows, keys[:, 0])
    return Candidates(rows, len(texts), keys, real, reads, _pairs(near, device), tuple(kinds))


def _reads(layout: TokenLayout, readings: Sequence[Pattern], queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """(queries, readings, keys), true where a query reads a key, which stands for its cell or group."""
    return torch.stack([reading.mask_mod(layout)(queries[:, None], keys[None, :]) for reading in readings], dim=1)


def _pairs(pairs: Sequence[tuple[int, int]], device: torch.device) -> Pairs:
    """The first and the second of some pairs."""
    found = torch.tensor(pairs, dtype=torch.int64, device=device).view(-1, 2)
    return found[:, 0], found[:, 1]


def _cells(layout: TokenLayout, numbered: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys of cells, none of which lies in two groups of one kind, and which of them are real."""
    cell = _cut(torch.stack(list(numbered)).unique(dim=1, return_inverse=True)[1], layout)
    sizes = cell.bincount()
    keys = torch.zeros(len(sizes), int(sizes.max()), dtype=torch.int64)
    real = torch.arange(keys.shape[1]) < sizes[:, None]
    keys[real] = cell.argsort(stable=True)
    return keys, real


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
    candidates: Candidates,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(recall, error, power): (candidates, heads) twice and (heads,), as planner.plan.evidence.SiteEvidence has them.

    query (B, H, N, D), key and value (B, H', N, D). attn_mask: over keys, (B or 1, H or 1, 1, N), boolean or additive.
    """
    batch, heads, _, channels = query.shape
    per_kv, queries = heads // key.shape[1], len(candidates.queries)
    factor = channels**-0.5 if scale is None else scale
    recall, error = torch.zeros(2, candidates.count, heads, device=query.device)
    power = torch.zeros(heads, device=query.device)
    per_query = batch * candidates.numbers(channels)
    rows = max(1, min(queries, WORKING_SET // per_query))
    step = max(1, min(heads, WORKING_SET // (rows * per_query)))
    for head in range(0, heads, step):
        mine = slice(head, min(head + step, heads))
        shared = torch.arange(heads, device=query.device)[mine] // per_kv
        k, v = (x[:, shared][:, :, candidates.keys].float() for x in (key, value))  # (B, h, cells, size, D)
        hidden = _hidden(attn_mask, mine, candidates, query.device)
        means = _means(candidates.kinds, k, v, hidden)
        for at in range(0, queries, rows):
            q = query[:, mine, candidates.queries[at : at + rows]].float() * factor
            dense, found = _read(q, k, v, hidden, means, candidates, at)
            power[mine] += dense[:, 0].square().sum(3).mean(1).sum(0) / queries
            for (places, readings), kept, squares in found:
                recall[places, mine] += kept.mean(2).sum(0)[readings] / queries
                error[places, mine] += squares.mean(2).sum(0)[readings] / queries
    return recall, error, power


Means = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Mean keys and values of groups, (B, h, groups, D), and the logarithms of how many tokens they are of."""


def _read(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    hidden: torch.Tensor,
    means: list[Means],
    candidates: Candidates,
    at: int,
) -> tuple[torch.Tensor, list[tuple[Pairs, torch.Tensor, torch.Tensor]]]:
    """What some queries, from the at-th on, get densely, (q, 1, B, h, D); and for each kind of candidates their places
    and readings, and of the readings the softmax mass kept and the squared errors, (q, readings, B, h) both.

    q (B, h, q, D), scaled; k and v (B, h, cells, size, D).
    """
    mine = slice(at, at + q.shape[2])
    reads = candidates.reads[mine].float()
    weights, shift = _weights(q, k, hidden)
    values = torch.einsum("bhqcs,bhcsd->qcbhd", weights, v)
    kept = torch.einsum("qrc,bhqc->qrbh", reads, weights.sum(4))
    read = torch.einsum("qrc,qcbhd->qrbhd", reads, values)
    dense = values.sum(1, keepdim=True)
    found = [(candidates.near, kept, _squares(read, kept, dense))]
    for kind, (keys, mean_values, sizes) in zip(candidates.kinds, means, strict=True):
        worth = (q @ keys.mT + sizes[:, :, None] - shift[..., None]).exp_()
        taken = kind.unread[mine] * worth[:, :, :, None]  # (B, h, q, readings, groups)
        more = torch.einsum("bhqrg,bhgd->qrbhd", taken, mean_values)
        near, more_mass = kept[:, kind.readings], taken.sum(4).permute(2, 3, 0, 1)
        found.append((kind.far, near, _squares(read[:, kind.readings] + more, near + more_mass, dense)))
    return dense, found


def _weights(q: torch.Tensor, k: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax over all keys, (B, h, q, cells, size), and the logarithm of what it divides by, (B, h, q)."""
    scores = (q @ k.flatten(2, 3).mT).unflatten(3, k.shape[2:4]) + hidden[:, :, None]
    weights = scores.flatten(3).softmax(3).view_as(scores)
    return weights, scores.amax((3, 4)) - weights.amax((3, 4)).log()


def _squares(read: torch.Tensor, mass: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """Squared errors of outputs, given what was read with the softmax mass of all, over all channels."""
    return torch.linalg.vector_norm(torch.addcdiv(-dense, read, mass.clamp(min=TINY)[..., None]), dim=4).square()


def _means(kinds: Sequence[Kind], k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor) -> list[Means]:
    """Of each kind of groups, over the tokens that are not hidden."""
    seen = (hidden > float("-inf")).float()  # (B or 1, h or 1, cells, size)
    counts, keys, values = seen.sum(3), *((x * seen[..., None]).sum(3) for x in (k, v))
    means = list[Means]()
    for kind in kinds:
        sizes = counts @ kind.members
        mean_keys, mean_values = (kind.members.mT @ x / sizes.clamp(min=1)[..., None] for x in (keys, values))
        means.append((mean_keys, mean_values, sizes.log()))
    return means


def _hidden(mask: torch.Tensor | None, heads: slice, candidates: Candidates, device: torch.device) -> torch.Tensor:
    """What is added to the scores of some heads' keys, -inf for those that do not exist or are masked.

    (B or 1, h or 1, cells, size)
    """
    added = torch.zeros(candidates.real.shape, device=device).masked_fill(~candidates.real, float("-inf"))[None, None]
    if mask is None:
        return added
    mask = mask.view(*[1] * (4 - mask.dim()), *mask.shape)[:, :, 0]
    mask = mask[:, heads] if mask.shape[1] > 1 else mask
    mask = mask.expand(-1, -1, int(candidates.keys.max()) + 1)[:, :, candidates.keys]
    return added.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else added + mask.float()
