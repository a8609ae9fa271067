"""Scores of candidate patterns on a site's own queries, keys and values, exact for the drawn queries.

One pass over the keys computes the sums of each key cell. The sum of all keys that a candidate reads is then a sum
over some of the cells, which are far fewer than the keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from planner.runtime.evidence.scored_candidates import Pairs, PooledGroups, ScoredCandidates

WORKING_SET = 3 * 2**26
"""Elements to hold at once: 768 MiB of float32, all 24 heads of FLUX at 1024²."""

TINY = 1e-30
"""The least softmax mass to divide by: a query that reads no key gets zeros, as in torch's own attention."""


class GroupMeans(NamedTuple):
    """The means of one kind of groups.

    keys: (B, h, groups, D). values: (B, h, groups, E). log_sizes: the logarithms of the groups' numbers of tokens,
    (B or 1, h or 1, groups). All float32.
    """

    keys: torch.Tensor
    values: torch.Tensor
    log_sizes: torch.Tensor


class _Reading(NamedTuple):
    """The softmax mass that some candidates keep, and their squared errors, (queries, readings, B, h) both."""

    pairs: Pairs
    kept: torch.Tensor
    squares: torch.Tensor


@torch.no_grad()
def score(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    candidates: ScoredCandidates,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Score candidates by the attention of one call of their site, computed in float32.

    query: (B, H, N, D), key: (B, H', N, D), value: (B, H', N, E), of any floating dtype. attn_mask: over keys,
    (B or 1, H or 1, 1, N or 1), boolean or additive. scale: of the scores, 1/√D by default.

    Returns recall and error, (candidates, H), and power, (H,), float32, as in planner.plan.evidence.SiteEvidence.
    """
    batch, heads, _, channels = query.shape
    per_kv, queries = heads // key.shape[1], len(candidates.queries)
    factor = channels**-0.5 if scale is None else scale
    recall, error = torch.zeros(2, candidates.count, heads, device=query.device)
    power = torch.zeros(heads, device=query.device)
    rows, step = _chunk_sizes(queries, heads, batch * candidates.elements(channels))
    for first in range(0, heads, step):
        chunk = slice(first, min(first + step, heads))
        kv_heads = torch.arange(heads, device=query.device)[chunk] // per_kv
        k, v = (x[:, kv_heads][:, :, candidates.keys].float() for x in (key, value))  # (B, h, cells, size, D or E)
        bias = _bias(attn_mask, chunk, candidates, query.device)
        means = list(_means(candidates.kinds, k, v, bias))
        for at in range(0, queries, rows):
            q = query[:, chunk, candidates.queries[at : at + rows]].float() * factor
            dense, readings = _read(q, k, v, bias, means, candidates, at)
            power[chunk] += dense[:, 0].square().sum(3).mean(1).sum(0) / queries
            for (indices, own), kept, squares in readings:
                recall[indices, chunk] += kept.mean(2).sum(0)[own] / queries
                error[indices, chunk] += squares.mean(2).sum(0)[own] / queries
    return recall, error, power


def _chunk_sizes(queries: int, heads: int, elements: int) -> tuple[int, int]:
    """Return how many queries and heads to score at once, given the elements of one query of one head."""
    rows = max(1, min(queries, WORKING_SET // elements))
    return rows, max(1, min(heads, WORKING_SET // (rows * elements)))


def _read(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor,
    means: Sequence[GroupMeans],
    candidates: ScoredCandidates,
    at: int,
) -> tuple[torch.Tensor, list[_Reading]]:
    """Attend from a chunk of queries, which begins with the at-th, densely and as each candidate does.

    q: (B, h, q, D), scaled. k: (B, h, cells, size, D), v: (B, h, cells, size, E). bias: (B or 1, h or 1, cells, size).
    Returns the dense output, (q, 1, B, h, E), and the readings, first those of candidates without pooled groups.
    """
    rows = slice(at, at + q.shape[2])
    reads = candidates.reads[rows].float()
    weights, log_divisor = _weights(q, k, bias)
    values = torch.einsum("bhqcs,bhcsd->qcbhd", weights, v)
    kept = torch.einsum("qrc,bhqc->qrbh", reads, weights.sum(4))
    read = torch.einsum("qrc,qcbhd->qrbhd", reads, values)
    dense = values.sum(1, keepdim=True)
    readings = [_Reading(candidates.exact, kept, _squared_errors(read, kept, dense))]
    for kind, of_kind in zip(candidates.kinds, means, strict=True):
        mass, value = _read_means(q, of_kind, log_divisor, kind.pooled[rows])
        own_kept, own_read = kept[:, kind.readings], read[:, kind.readings]
        readings.append(_Reading(kind.pairs, own_kept, _squared_errors(own_read + value, own_kept + mass, dense)))
    return dense, readings


def _read_means(
    q: torch.Tensor, means: GroupMeans, log_divisor: torch.Tensor, pooled: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mass of the means of pooled groups, (q, readings, B, h), and their values, (q, readings, B, h, E).

    q: (B, h, q, D), scaled. log_divisor: (B, h, q). pooled: (q, readings, groups) bool.
    """
    weights = (q @ means.keys.mT + means.log_sizes[:, :, None] - log_divisor[..., None]).exp_()
    weights = pooled * weights[:, :, :, None]  # (B, h, q, readings, groups)
    return weights.sum(4).permute(2, 3, 0, 1), torch.einsum("bhqrg,bhgd->qrbhd", weights, means.values)


def _weights(q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the softmax over all keys, (B, h, q, cells, size), and the logarithm of its divisor, (B, h, q)."""
    scores = (q @ k.flatten(2, 3).mT).unflatten(3, k.shape[2:4]) + bias[:, :, None]
    weights = scores.flatten(3).softmax(3).view_as(scores)
    return weights, scores.amax((3, 4)) - weights.amax((3, 4)).log()


def _squared_errors(read: torch.Tensor, mass: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """Return the squared length of the error of each output, (q, readings, B, h).

    read: the weighted sum of the values that were read, (q, readings, B, h, E). mass: the softmax mass of these values,
    (q, readings, B, h), which the sum is divided by. dense: (q, 1, B, h, E).
    """
    return torch.linalg.vector_norm(torch.addcdiv(-dense, read, mass.clamp(min=TINY)[..., None]), dim=4).square()


def _means(kinds: Sequence[PooledGroups], k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> Iterator[GroupMeans]:
    """Average keys and values over each kind of groups, without keys whose bias is -inf.

    k: (B, h, cells, size, D), v: (B, h, cells, size, E). bias: (B or 1, h or 1, cells, size).
    """
    is_visible = (bias > float("-inf")).float()  # (B or 1, h or 1, cells, size)
    counts, keys, values = is_visible.sum(3), *((x * is_visible[..., None]).sum(3) for x in (k, v))
    for kind in kinds:
        sizes = counts @ kind.members
        mean_keys, mean_values = (kind.members.mT @ x / sizes.clamp(min=1)[..., None] for x in (keys, values))
        yield GroupMeans(mean_keys, mean_values, sizes.log())


def _bias(mask: torch.Tensor | None, heads: slice, candidates: ScoredCandidates, device: torch.device) -> torch.Tensor:
    """Return the bias of the scores of some heads' keys, -inf for padding and masked keys.

    mask: as in ``score``. Returns (B or 1, h or 1, cells, size) float32.
    """
    is_real = candidates.is_real
    bias = torch.zeros(is_real.shape, device=device).masked_fill(~is_real, float("-inf"))[None, None]
    if mask is None:
        return bias
    mask = mask.view(*[1] * (4 - mask.dim()), *mask.shape)[:, :, 0]
    mask = mask[:, heads] if mask.shape[1] > 1 else mask
    mask = mask.expand(-1, -1, int(candidates.keys.max()) + 1)[:, :, candidates.keys]
    return bias.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else bias + mask.float()
