"""Choices: for each head of each site, in each range of noise levels, what every candidate costs and loses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.nn.functional import pad

from planner.errors import BadEvidence
from planner.patterns.base import Pattern
from planner.patterns.density import density
from planner.patterns.layout import TokenLayout
from planner.plan.evidence import SiteEvidence, mean_over
from planner.plan.site import AttentionSite
from planner.plan.target import Target
from planner.search.cost import sparse_seconds


@dataclass(frozen=True)
class Choice:
    """One head of one site in one range: its options, the dense one first, and what they cost and lose.

    site, range: by their numbers. seconds: predicted, of the head's share of the site, times the share of the steps.
    pairs: attended pairs of the head over all pairs of all heads and steps. losses: predicted error. recalls: kept
    softmax mass.
    """

    site: int
    head: int
    range: int
    seconds: tuple[float, ...]
    pairs: tuple[float, ...]
    losses: tuple[float, ...]
    recalls: tuple[float, ...]


def choices_of(
    number: int,
    site: AttentionSite,
    patterns: Sequence[Pattern],
    evidence: SiteEvidence,
    ranges: Sequence[tuple[float, tuple[int, ...], float]],
    target: Target,
    every_pair: int,
) -> Iterator[Choice]:
    """Yield the choices of a site, range by range; raises BadEvidence.

    number: of the site. patterns: its options, the dense one first. ranges: of noise levels, (share of the steps,
    recorded calls, weight of the errors). every_pair: pairs of all heads of all sites.
    """
    layout = site.layout
    assert isinstance(layout, TokenLayout)
    rows = [evidence.candidates.index(str(pattern)) for pattern in patterns[1:]]
    share_of_pairs = site.batch * site.queries**2 / every_pair
    seconds = [sparse_seconds(site, pattern, target) / site.heads for pattern in patterns]
    pairs = [density(pattern, layout) * share_of_pairs for pattern in patterns]
    for place, (share, calls, gain) in enumerate(ranges):
        weight = share * gain * _sensitivity(evidence, calls, site.name)
        # Tables are (candidates, heads); dense attention, which loses nothing and keeps all, is put before them.
        losses = pad(mean_over(evidence.error, calls)[rows] * weight, (0, 0, 1, 0)).T.tolist()
        recalls = pad(mean_over(evidence.recall, calls)[rows], (0, 0, 1, 0), value=1.0).T.tolist()
        for head in range(site.heads):
            yield Choice(
                site=number,
                head=head,
                range=place,
                seconds=tuple(share * value for value in seconds),
                pairs=tuple(share * value for value in pairs),
                losses=tuple(losses[head]),
                recalls=tuple(recalls[head]),
            )


def _sensitivity(evidence: SiteEvidence, calls: Sequence[int], name: str) -> float:
    """Return that of a range's calls, or of all where none of them was probed."""
    inside = float(mean_over(evidence.sensitivity, calls))
    sensitivity = inside if not math.isnan(inside) else float(evidence.sensitivity.nanmean())
    if math.isnan(sensitivity):
        raise BadEvidence(name, "its sensitivity was not measured: the recording was broken off")
    return sensitivity
