"""Scores of candidate patterns on a site's own queries, keys and values, exact for the queries looked at.

Candidates of one group read whole groups. One pass over the keys makes the sums of each group, and what a candidate
reads is then a sum over a list of groups, much shorter than the keys.
"""

from __future__ import annotations

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
    """Candidates of one kind of groups. Keys lie in rows: one for each group, then pieces of the global tokens.

    keys: (rows, size) sequence indices, real: the same shape, false where a row is smaller. groups: rows that are
    groups. lists: the rows that each query reads, by reading. near: places of candidates and of their readings, far:
    the same of candidates that also read the means of all other groups.
    """

    keys: torch.Tensor
    real: torch.Tensor
    groups: int
    lists: Lists
    near: tuple[torch.Tensor, torch.Tensor]
    far: tuple[torch.Tensor, torch.Tensor]

    @staticmethod
    def of(layout: TokenLayout, patterns: dict[int, Pattern], queries: torch.Tensor, device: torch.device) -> Kind:
        """Patterns of one group and offset, by their places among the candidates."""
        numbers, groups = _rows(layout, next(iter(patterns.values())))
        sizes = numbers.bincount()
        keys = torch.zeros(len(sizes), int(sizes.max()), dtype=torch.int64)
        real = torch.arange(keys.shape[1]) < sizes[:, None]
        keys[real] = numbers.argsort(stable=True)
        readings = list(dict.fromkeys(pattern.near for pattern in patterns.values()))
        reads = [reading.mask_mod(layout)(queries[:, None], keys[None, :, 0]) for reading in readings]
        near, far = (
            torch.tensor(
                [(at, readings.index(pattern.near)) for at, pattern in patterns.items() if pattern.far == is_far],
                dtype=torch.int64,
                device=device,
            ).view(-1, 2)
            for is_far in (False, True)
        )
        lists = Lists.of(torch.stack(reads, dim=1), device)
        return Kind(keys.to(device), real.to(device), groups, lists, (near[:, 0], near[:, 1]), (far[:, 0], far[:, 1]))

    def numbers(self, channels: int) -> int:
        """How many numbers are held at once for each query of each head."""
        rows, size = self.keys.shape
        return rows * (2 * channels + size) + 3 * self.lists.readings * channels


@dataclass(frozen=True)
class Candidates:
    """Some candidates, kind by kind; the sequence indices of the queries looked at, (queries,)."""

    queries: torch.Tensor
    count: int
    kinds: tuple[Kind, ...]


@lru_cache(maxsize=32)
def make_candidates(layout_text: str, texts: tuple[str, ...], queries: int, device: torch.device) -> Candidates:
    """Candidates for a layout with one grid; the queries drawn of the grid are always the same."""
    layout = TokenLayout.parse(layout_text)
    drawn = torch.randperm(layout.grid.tokens, generator=torch.Generator().manual_seed(0))[:queries]
    looked_at = layout.grid_start + drawn.sort().values
    alike = dict[tuple[tuple[int, ...], ...], dict[int, Pattern]]()
    for place, text in enumerate(texts):
        pattern = parse_pattern(text)
        alike.setdefault((pattern.group, pattern.offset), {})[place] = pattern
    kinds = tuple(Kind.of(layout, patterns, looked_at, device) for patterns in alike.values())
    return Candidates(looked_at.to(device), len(texts), kinds)


def _rows(layout: TokenLayout, pattern: Pattern) -> tuple[torch.Tensor, int]:
    """The row of each token, and how many rows are groups; global tokens are cut up to be no more than a group."""
    grid, start = layout.grid, layout.grid_start
    numbers = pattern.grid(grid.sizes).numbers() if pattern.group else torch.zeros(grid.tokens, dtype=torch.int64)
    sizes = numbers.bincount()
    pieces = len(sizes) + torch.arange(layout.tokens - grid.tokens) // int(sizes.max())
    return torch.cat([pieces[:start], numbers, pieces[start:]]), len(sizes)


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
    for kind in candidates.kinds:
        rows = max(1, min(queries, WORKING_SET // (batch * kind.numbers(channels))))
        step = max(1, min(heads, WORKING_SET // (rows * batch * kind.numbers(channels))))
        for head in range(0, heads, step):
            mine = slice(head, min(head + step, heads))
            shared = torch.arange(heads, device=query.device)[mine] // per_kv
            k, v = (x[:, shared][:, :, kind.keys].float() for x in (key, value))  # (B, h, rows, size, D)
            hidden = _hidden(attn_mask, mine, kind, query.device)
            for at in range(0, queries, rows):
                q = query[:, mine, candidates.queries[at : at + rows]].float() * factor
                dense, kept, without, with_means = _attended(q, k, v, hidden, kind, at)
                for (places, readings), read in ((kind.near, without), (kind.far, with_means)):
                    recall[places, mine] += kept.mean(2).sum(0)[readings] / queries
                    error[places, mine] += (read - dense).square_().sum(4).mean(2).sum(0)[readings] / queries
                if kind is candidates.kinds[0]:
                    power[mine] += dense[:, 0].square().sum(3).mean(1).sum(0) / queries
    return recall, error, power


def _attended(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor, kind: Kind, at: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What some queries, from the at-th on, get: densely, (q, 1, B, h, D); the softmax mass that readings keep,
    (q, readings, B, h); by readings, (q, readings, B, h, D); and by these and the means of all other groups.

    q (B, h, q, D), scaled; k and v (B, h, rows, size, D).
    """
    scores = (q @ k.flatten(2, 3).mT).unflatten(3, k.shape[2:4]) + hidden[:, :, None]  # (B, h, q, rows, size)
    shift = scores.flatten(3).logsumexp(3)
    weights = scores.sub_(shift[..., None, None]).exp_()
    values = torch.einsum("bhqrs,bhrsd->qrbhd", weights, v)
    mass, read = (kind.lists.sums(x, at) for x in (weights.sum(4).permute(2, 3, 0, 1), values))
    keys, mean_values, sizes = _means(k, v, hidden, kind.groups)
    worth = (q @ keys.mT + sizes.log()[:, :, None] - shift[..., None]).exp_().permute(2, 3, 0, 1)
    coarse = worth[..., None] * mean_values.permute(2, 0, 1, 3)
    added, more = (x.sum(1, keepdim=True) - kind.lists.sums(x, at) for x in (worth, coarse))
    without, with_means = (
        of / total.clamp(min=TINY)[..., None] for of, total in ((read, mass), (read + more, mass + added))
    )
    return values.sum(1, keepdim=True), mass, without, with_means


def _means(
    k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor, groups: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean keys and values of rows, (B, h, rows, D), and of how many tokens, none for rows that are no groups."""
    seen = (hidden > float("-inf")).float()  # (B or 1, h or 1, rows, size)
    sizes = seen.sum(3)
    keys, values = ((x * seen[..., None]).sum(3) / sizes.clamp(min=1)[..., None] for x in (k, v))
    return keys, values, torch.where(torch.arange(len(sizes[0, 0]), device=k.device) < groups, sizes, 0)


def _hidden(mask: torch.Tensor | None, heads: slice, kind: Kind, device: torch.device) -> torch.Tensor:
    """What is added to the scores of some heads' keys, -inf for those that do not exist or are masked.

    (B or 1, h or 1, rows, size)
    """
    added = torch.zeros(kind.real.shape, device=device).masked_fill(~kind.real, float("-inf"))[None, None]
    if mask is None:
        return added
    mask = mask.view(*[1] * (4 - mask.dim()), *mask.shape)[:, :, 0]
    mask = mask[:, heads] if mask.shape[1] > 1 else mask
    mask = mask.expand(-1, -1, int(kind.keys.max()) + 1)[:, :, kind.keys]
    return added.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else added + mask.float()
