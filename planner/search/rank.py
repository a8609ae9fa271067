"""Choice: one pattern per site, and why every other candidate was rejected.

Of the candidates that meet the caller's budget the one that keeps the most of the attention wins; without a budget,
of those that beat dense attention. Candidates are GRAT's patterns (arXiv 2505.14687) with its group sizes and half of
them, and whatever the caller names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from planner.patterns.base import Pattern
from planner.patterns.dense import Dense
from planner.patterns.density import attended_pairs
from planner.patterns.layout import TokenLayout
from planner.plan.options import Options
from planner.plan.site import AttentionSite
from planner.plan.target import Target
from planner.search.candidates import candidates
from planner.search.cost import attention_flops, dense_seconds, sparse_seconds
from planner.shapes import times

RejectionKind = Literal["too large", "covers all", "over budget", "below break-even", "beaten"]


@dataclass(frozen=True)
class Rejection:
    """Why a candidate was rejected."""

    kind: RejectionKind
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


@dataclass(frozen=True)
class Candidate:
    """A pattern at a site, its predicted cost, and why it was rejected (None for the winner)."""

    pattern: Pattern
    density: float
    flops: int
    seconds: float
    rejected: Rejection | None


def rank(site: AttentionSite, options: Options, target: Target, is_shifted: bool = False) -> list[Candidate]:
    """List all candidates of a site, the winner first, the others with the reason why each was rejected.

    is_shifted: whether groups are shifted by half a group.
    """
    dense = Candidate(
        Dense(), 1.0, attention_flops(site, site.queries * site.keys), dense_seconds(site, target), rejected=None
    )
    if site.why_not() is not None or not isinstance(site.layout, TokenLayout):
        return [dense]
    patterns = candidates(site.layout.grid.sizes, options)
    judged = [
        _judge(site, site.layout, pattern.shifted() if is_shifted else pattern, options, target, dense)
        for pattern in patterns
    ]
    fit = [candidate for candidate in judged if candidate.rejected is None]
    if not fit or (options.request is not None and options.request.kind == "dense"):
        return [dense, *judged]
    best = max(fit, key=lambda candidate: (candidate.density, -candidate.seconds))
    losers = [
        c if c.rejected is not None else _lose(c, f"keeps less attention than {best.pattern}")
        for c in judged
        if c is not best
    ]
    return [best, *losers, _lose(dense, f"{dense.seconds / best.seconds:.2f} times the time of {best.pattern}")]


def why_dense(site: AttentionSite, options: Options, ranked: Sequence[Candidate]) -> str:
    """Return why a ranked site is left dense: the site's own reason, or that of the candidate which came nearest."""
    reason = site.why_not()
    if reason is not None:
        return reason
    if options.request is not None and options.request.kind == "dense":
        return "pattern=dense asks for it"
    losers = [(c.rejected, c) for c in ranked if c.rejected is not None]
    if not losers:
        return f"{_unfit(options)} fits the axes of {site.layout}"
    rejected, nearest = min(losers, key=lambda loser: (_NEARNESS.index(loser[0].kind), loser[1].seconds))
    return f"{rejected} ({nearest.pattern})"


def _unfit(options: Options) -> str:
    return "no candidate" if options.group_shape is None else f"no group of {times(options.group_shape)}"


_NEARNESS: tuple[RejectionKind, ...] = ("beaten", "below break-even", "over budget", "covers all", "too large")


def _judge(
    site: AttentionSite, layout: TokenLayout, pattern: Pattern, options: Options, target: Target, dense: Candidate
) -> Candidate:
    grid = layout.grid
    if any(g > n for g, n in zip(pattern.group, grid.sizes, strict=True)):
        return Candidate(pattern, 1.0, dense.flops, dense.seconds, Rejection("too large", f"the grid is {grid}"))
    pairs = attended_pairs(pattern, layout)
    density, seconds = pairs / layout.tokens**2, sparse_seconds(site, pattern, target)
    speedup = dense.seconds / seconds
    rejected = None
    if pattern.is_too_wide(pattern.grid(grid.sizes).counts) or pairs == layout.tokens**2:
        rejected = Rejection("covers all", "it reads the whole grid")
    elif options.density is not None and density > options.density:
        rejected = Rejection("over budget", f"density {density:.3f}, asked for {options.density:g} at most")
    elif options.speedup is not None and speedup < options.speedup:
        rejected = Rejection("over budget", f"predicted {speedup:.2f}x, asked for {options.speedup:g}x at least")
    elif speedup < options.min_speedup:
        rejected = Rejection(
            "below break-even", f"predicted {speedup:.2f}x of dense, {options.min_speedup:g}x is the least"
        )
    return Candidate(pattern, density, attention_flops(site, pairs), seconds, rejected)


def _lose(candidate: Candidate, detail: str) -> Candidate:
    return replace(candidate, rejected=Rejection("beaten", detail))
