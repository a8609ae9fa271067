"""Scores of candidate patterns on a site's own queries, keys and values, exact for the queries looked at.

Keys are sorted into cells, the common refinement of all candidates' groups, and one pass over the keys makes the sums
of each cell. What a candidate reads is then a sum over a list of cells, which is much shorter than the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from planner.layout import TokenLayout
from planner.pattern import Pattern, parse_pattern

WORKING_SET = 3 * 2**26
"""Numbers to hold at once: 768 MiB of float32, all 24 heads of FLUX at 1024²."""


TINY = 1e-30
"""Less softmax mass than this is none: what reads no key gives zeros, as in torch's own attention."""


@dataclass(frozen=True)
class Lists:
    """Which rows of a table each query reads under each reading, one list after the other.

    rows: of all lists, in the table of all queries. starts: (queries * readings + 1,), where lists begin in ``rows``.
    ends: where those of each query end, from 0 on.
    """

    rows: torch.Tensor
    starts: torch.Tensor
    ends: tuple[int, ...]

    @staticmethod
    def of(reads: torch.Tensor, device: torch.device) -> Lists:
        """The lists of a table (queries, readings, rows) of truth values."""
        _, readings, rows = reads.shape
        found = reads.flatten().nonzero()[:, 0]
        starts = F.pad(reads.sum(2).flatten().cumsum(0), (1, 0))
        numbered = found // (readings * rows) * rows + found % rows
        return Lists(numbered.int().to(device), starts.int().to(device), tuple(starts[::readings].tolist()))

    @property
    def readings(self) -> int:
        """Lists of each query."""
        return (len(self.starts) - 1) // (len(self.ends) - 1)

    def sums(self, table: torch.Tensor, at: int) -> torch.Tensor:
        """(q, readings, ...): sums over the lists of some queries, from the at-th on, of their table (q, rows, ...)."""
        (queries, rows), readings = table.shape[:2], self.readings
        begin, end = self.ends[at], self.ends[at + queries]
        items = self.rows[begin:end] - at * rows
        starts = self.starts[at * readings : (at + queries) * readings + 1] - begin
        found = F.embedding_bag(items, table.reshape(queries * rows, -1), starts, mode="sum", include_last_offset=True)
        return found.view(queries, readings, *table.shape[2:])


@dataclass(frozen=True)
class Kind:
    """One kind of groups, of which candidates read the means.

    members: (cells, groups), 1 where a cell lies in a group. readings: those of this kind; lists: the groups that each
    query reads one by one, by reading. far: places of candidates and of their readings among these.
    """

    members: torch.Tensor
    readings: slice
    lists: Lists
    far: tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Candidates:
    """Some candidates, and which keys lie in which cell.

    queries: (queries,) sequence indices of those looked at. keys: (cells, size) sequence indices, real: the same shape,
    false where a cell is smaller. lists: the cells that each query reads, by reading. near: places of candidates and of
    their readings. kinds: candidates that also read means.
    """

    queries: torch.Tensor
    count: int
    keys: torch.Tensor
    real: torch.Tensor
    lists: Lists
    near: tuple[torch.Tensor, torch.Tensor]
    kinds: tuple[Kind, ...]

    def numbers(self, channels: int) -> int:
        """How many numbers are held at once for each query of each head."""
        cells, size = self.keys.shape
        return cells * (2 * channels + size) + 2 * self.lists.readings * channels


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
        far = [(place, own.index(pattern.near)) for place, pattern in members.items() if pattern.far]
        if far:
            is_in = numbers[keys[:, 0], None] == torch.arange(int(numbers.max()) + 1)
            lists = _lists(layout, own, rows, keys[is_in.int().argmax(0), 0], device)
            mine = slice(len(readings), len(readings) + len(own))
            kinds.append(Kind(is_in.float().to(device), mine, lists, _pairs(far, device)))
        readings += own
    near = [(place, readings.index(pattern)) for place, pattern in enumerate(patterns) if not pattern.far]
    lists = _lists(layout, readings, rows, keys[:, 0], device)
    return Candidates(rows, len(texts), keys.to(device), real.to(device), lists, _pairs(near, device), tuple(kinds))


def _lists(
    layout: TokenLayout, readings: Sequence[Pattern], queries: torch.Tensor, keys: torch.Tensor, device: torch.device
) -> Lists:
    """What queries read of cells or groups, each given by one of its keys."""
    keys = keys.to(device)
    reads = [reading.mask_mod(layout)(queries[:, None], keys[None, :]) for reading in readings]
    return Lists.of(torch.stack(reads, dim=1), device)


def _pairs(pairs: Sequence[tuple[int, int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
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
    """(recall, error, power): (candidates, heads) twice and (heads,), as planner.evidence.SiteEvidence has them.

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
        means = [_means(kind.members, k, v, hidden) for kind in candidates.kinds]
        for at in range(0, queries, rows):
            q = query[:, mine, candidates.queries[at : at + rows]].float() * factor
            dense, kept, found = _read(q, k, v, hidden, means, candidates, at)
            power[mine] += dense[:, 0].square().sum(3).mean(1).sum(0) / queries
            of_reading = kept.mean(2).sum(0) / queries
            for (places, readings), output, of in found:
                recall[places, mine] += of_reading[of][readings]
                error[places, mine] += ((output - dense).square_().sum(4).mean(2).sum(0) / queries)[readings]
    return recall, error, power


Means = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Mean keys and values of groups, (B, h, groups, D), and of how many tokens they are."""


def _read(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    hidden: torch.Tensor,
    means: list[Means],
    candidates: Candidates,
    at: int,
) -> tuple[torch.Tensor, torch.Tensor, list[tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor, slice]]]:
    """What some queries, from the at-th on, get: densely, (q, 1, B, h, D); the softmax mass that each reading keeps,
    (q, readings, B, h); and for each kind of candidates their places and readings, what the readings give,
    (q, readings, B, h, D), and which these are of all.

    q (B, h, q, D), scaled; k and v (B, h, cells, size, D).
    """
    scores = (q @ k.flatten(2, 3).mT).unflatten(3, k.shape[2:4]) + hidden[:, :, None]  # (B, h, q, cells, size)
    shift = scores.flatten(3).logsumexp(3)
    weights = scores.sub_(shift[..., None, None]).exp_()
    values = torch.einsum("bhqcs,bhcsd->qcbhd", weights, v)
    kept, read = (candidates.lists.sums(x, at) for x in (weights.sum(4).permute(2, 3, 0, 1), values))
    found = [(candidates.near, read / kept.clamp(min=TINY)[..., None], slice(None))]
    for kind, (keys, mean_values, sizes) in zip(candidates.kinds, means, strict=True):
        worth = (q @ keys.mT + sizes.log()[:, :, None] - shift[..., None]).exp_().permute(2, 3, 0, 1)
        coarse = worth[..., None] * mean_values.permute(2, 0, 1, 3)
        added, more = (x.sum(1, keepdim=True) - kind.lists.sums(x, at) for x in (worth, coarse))
        total = (kept[:, kind.readings] + added).clamp(min=TINY)
        found.append((kind.far, (read[:, kind.readings] + more) / total[..., None], kind.readings))
    return values.sum(1, keepdim=True), kept, found


def _means(members: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor) -> Means:
    seen = (hidden > float("-inf")).float()  # (B or 1, h or 1, cells, size)
    sizes = seen.sum(3) @ members
    keys, values = (members.mT @ (x * seen[..., None]).sum(3) / sizes.clamp(min=1)[..., None] for x in (k, v))
    return keys, values, sizes


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
