"""Choice: one pattern per site, and why every other candidate lost.

Of the candidates that meet the caller's budget the one that keeps the most of the attention wins; without a budget,
of those that beat dense attention. Candidates are GRAT's patterns (arXiv 2505.14687) with its group sizes and half of
them, and whatever the caller names.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypedDict

from planner.cost import attention_flops, dense_seconds, sparse_seconds
from planner.density import attended_pairs
from planner.errors import BadOption, times
from planner.groups import GroupGrid
from planner.layout import TokenLayout
from planner.noise import NoiseLevel
from planner.pattern import CrissCross, Dense, Neighborhood, Pattern, PatternRequest, parse_group, parse_request, spread
from planner.sites import AttentionSite
from planner.target import Target

GROUPS: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((64,), (256,)),
    2: ((8, 8), (16, 16)),
    3: ((2, 4, 8), (2, 8, 8), (4, 8, 8)),
}
RADII = (1, 2, 3)


def catalogue(layout: TokenLayout) -> list[Pattern]:
    """The candidates that evidence is recorded of, each with and without the means of far groups.

    Groups of 64 to 256 tokens, GRAT's among them; of each the criss-cross by lines and planes, and neighbourhoods of
    every radius per axis up to the greatest of RADII, as far as they leave something out.
    """
    sizes = layout.grid.sizes
    found = list[Pattern]()
    for group in GROUPS[len(sizes)]:
        if any(g > n for g, n in zip(group, sizes, strict=True)):
            continue
        kinds: tuple[Literal["lines", "planes"], ...] = ("lines", "planes")[: len(sizes) - 1]
        offered: list[Pattern] = [CrissCross(group, kind) for kind in kinds]
        counts = GroupGrid(sizes, group).counts
        most = [min(RADII[-1], (count - 1) // 2 + (count % 2 == 0)) for count in counts]
        offered += [Neighborhood(group, radius, "clamp") for radius in itertools.product(*(range(r + 1) for r in most))]
        found += [pattern for pattern in offered if attended_pairs(pattern, layout) < layout.tokens**2]
    return [*found, *(replace(pattern, far=True) for pattern in found)]  # pyright: ignore[reportArgumentType]


class PlanOptions(TypedDict, total=False):
    """Keyword arguments of make_plan and compile: the fields of Options."""

    pattern: str | None
    group: str | None
    density: float | None
    speedup: float | None
    min_speedup: float
    layout: str | None
    sparse_below: float
    noise: str | None
    alternate_offsets: bool


@dataclass(frozen=True)
class Options:
    """What the caller asks of a plan.

    pattern: a spelling in which all but the kind may be left out: ``crisscross``, ``neighborhood{radius=2}``.
    group: a group shape, ``16x16``; sites with another number of axes choose their own.
    density: at most this share of the pairs is attended, in (0, 1].
    speedup: at least this predicted speed-up of attention, per site.
    min_speedup: a site predicted to gain less stays dense.
    layout: layout of the self-attention sites, where the graph cannot tell.
    sparse_below: sites are sparse at noise levels up to this one, and dense above it, in (0, 1]. Early steps, where
    noise dominates, settle the composition; published methods keep the first fifth or quarter of the range dense.
    noise: what tells the noise level, where the graph cannot: ``timestep/1000``, ``1-timestep``.
    alternate_offsets: every second site of a layout has its groups shifted by half a group, so that the borders of
    groups do not lie in the same place in every layer.
    """

    pattern: str | None = None
    group: str | None = None
    density: float | None = None
    speedup: float | None = None
    min_speedup: float = 1.05
    layout: str | None = None
    sparse_below: float = 1.0
    noise: str | None = None
    alternate_offsets: bool = False

    def verify(self) -> Options:
        """Return the options; raises BadOption, BadSpelling or MalformedValue."""
        if not 0 < self.sparse_below <= 1:
            raise BadOption("sparse_below", self.sparse_below, "a noise level between 0 (excluded) and 1")
        if self.noise is not None:
            NoiseLevel.parse(self.noise)
        if self.density is not None and not 0 < self.density <= 1:
            raise BadOption("density", self.density, "a share between 0 (excluded) and 1")
        if self.speedup is not None and not 1 <= self.speedup < 1e6:
            raise BadOption("speedup", self.speedup, "a factor of at least 1")
        if not 0 <= self.min_speedup < 1e6:
            raise BadOption("min_speedup", self.min_speedup, "a factor of at least 0")
        group = None if self.pattern is None else parse_request(self.pattern).group
        if self.group is not None and group not in (None, parse_group(self.group)):
            raise BadOption("group", self.group, f"the group that pattern= names, {times(group)}, or nothing")
        if self.layout is not None:
            TokenLayout.parse(self.layout)
        request = self.request
        if request is not None and request.offset is not None:
            request.pattern()
        return self

    @property
    def request(self) -> PatternRequest | None:
        """What ``pattern`` and ``group`` ask for together."""
        request = None if self.pattern is None else parse_request(self.pattern)
        if request is None or self.group is None or request.kind == "dense":
            return request
        return request.with_group(parse_group(self.group))

    @property
    def group_shape(self) -> tuple[int, ...] | None:
        """The group that ``pattern`` or ``group`` names."""
        request = self.request
        if request is not None and request.group is not None:
            return request.group
        return None if self.group is None else parse_group(self.group)


LossKind = Literal["too large", "covers all", "over budget", "below break-even", "beaten"]


@dataclass(frozen=True)
class Loss:
    """Why a candidate lost."""

    kind: LossKind
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


@dataclass(frozen=True)
class Candidate:
    """A pattern at a site, its predicted cost, and why it lost (None for the winner)."""

    pattern: Pattern
    density: float
    flops: int
    seconds: float
    lost: Loss | None


def rank(site: AttentionSite, options: Options, target: Target, is_shifted: bool = False) -> list[Candidate]:
    """All candidates of a site, the winner first, each loser with its reason. is_shifted: by half a group."""
    dense = Candidate(
        Dense(), 1.0, attention_flops(site, site.queries * site.keys), dense_seconds(site, target), lost=None
    )
    if site.why_not() is not None or not isinstance(site.layout, TokenLayout):
        return [dense]
    patterns = _patterns(len(site.layout.grid.sizes), options)
    judged = [
        _judge(site, site.layout, pattern.shifted() if is_shifted else pattern, options, target, dense)
        for pattern in patterns
    ]
    fit = [candidate for candidate in judged if candidate.lost is None]
    if not fit or (options.request is not None and options.request.kind == "dense"):
        return [dense, *judged]
    best = max(fit, key=lambda candidate: (candidate.density, -candidate.seconds))
    losers = [
        c if c.lost is not None else _lose(c, f"keeps less attention than {best.pattern}")
        for c in judged
        if c is not best
    ]
    return [best, *losers, _lose(dense, f"{dense.seconds / best.seconds:.2f} times the time of {best.pattern}")]


def why_dense(site: AttentionSite, options: Options, ranked: Sequence[Candidate]) -> str:
    """The reason for leaving a ranked site dense: the site's own, or that of the candidate which came nearest."""
    reason = site.why_not()
    if reason is not None:
        return reason
    if options.request is not None and options.request.kind == "dense":
        return "pattern=dense asks for it"
    losers = [(c.lost, c) for c in ranked if c.lost is not None]
    if not losers:
        return f"no candidate fits the axes of {site.layout}"
    lost, nearest = min(losers, key=lambda loser: (_NEARNESS.index(loser[0].kind), loser[1].seconds))
    return f"{lost} ({nearest.pattern})"


_NEARNESS: tuple[LossKind, ...] = ("beaten", "below break-even", "over budget", "covers all", "too large")


def _patterns(axes: int, options: Options) -> Iterator[Pattern]:
    """Candidates for a grid of so many axes that the options admit."""
    request, shape = options.request, options.group_shape
    groups = GROUPS[axes] if shape is None or len(shape) != axes else (shape,)
    budget = options.density is not None or options.speedup is not None
    offset = request.offset if request is not None and request.offset is not None else ()
    offset = offset if len(offset) == axes else ()
    far = request is not None and request.far
    for group in groups:
        if axes > 1 and (request is None or request.kind == "crisscross"):
            named = request.axes if request is not None else None
            kinds = (named,) if named else ("lines",) if axes == 2 else ("planes", "lines") if budget else ("planes",)
            yield from (CrissCross(group, kind, offset, far) for kind in kinds)
        if (request is None and budget) or (request is not None and request.kind == "neighborhood"):
            edge = (request.edge if request is not None else None) or "clamp"
            radius = request.radius if request is not None else None
            radii = [radius] if radius is not None else [(r,) for r in (RADII if budget else RADII[:1])]
            yield from (Neighborhood(group, spread(r, axes), edge, offset, far) for r in radii if len(r) in (1, axes))


def _judge(
    site: AttentionSite, layout: TokenLayout, pattern: Pattern, options: Options, target: Target, dense: Candidate
) -> Candidate:
    grid = layout.grid
    if any(g > n for g, n in zip(pattern.group, grid.sizes, strict=True)):
        return Candidate(pattern, 1.0, dense.flops, dense.seconds, Loss("too large", f"the grid is {grid}"))
    pairs = attended_pairs(pattern, layout)
    density, seconds = pairs / layout.tokens**2, sparse_seconds(site, pattern, target)
    speedup = dense.seconds / seconds
    lost = None
    if _covers(pattern, pattern.grid(grid.sizes)):
        lost = Loss("covers all", "the window holds the whole grid")
    elif options.density is not None and density > options.density:
        lost = Loss("over budget", f"density {density:.3f}, asked for {options.density:g} at most")
    elif options.speedup is not None and speedup < options.speedup:
        lost = Loss("over budget", f"predicted {speedup:.2f}x, asked for {options.speedup:g}x at least")
    elif speedup < options.min_speedup:
        lost = Loss("below break-even", f"predicted {speedup:.2f}x of dense, {options.min_speedup:g}x is the least")
    return Candidate(pattern, density, attention_flops(site, pairs), seconds, lost)


def _covers(pattern: Pattern, grid: GroupGrid) -> bool:
    """Whether a neighbourhood's window holds the whole grid of groups."""
    counts = grid.counts
    return isinstance(pattern, Neighborhood) and all(
        2 * r + 1 >= count if pattern.edge == "clamp" else r >= count - 1
        for r, count in zip(pattern.radius, counts, strict=True)
    )


def _lose(candidate: Candidate, detail: str) -> Candidate:
    return replace(candidate, lost=Loss("beaten", detail))
