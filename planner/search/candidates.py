"""Candidates: the patterns that are judged at a site, as far as options admit them."""

from __future__ import annotations

from collections.abc import Sequence

from planner.patterns.base import Breadth, Pattern
from planner.patterns.catalogue import proposals
from planner.plan.options import Options


def candidates(sizes: Sequence[int], options: Options) -> list[Pattern]:
    """Return the candidates for a grid of such sizes that the options admit."""
    request = options.request
    if options.density is not None or options.speedup is not None:
        breadth = Breadth.BUDGET
    else:
        breadth = Breadth.UNASKED if request is None else Breadth.NAMED
    return proposals(sizes, breadth, options.group_shape, request)
