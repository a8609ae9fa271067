"""Candidates: the patterns that are worth judging at a site, GRAT's (arXiv 2505.14687) and what the caller names."""

from __future__ import annotations

from collections.abc import Iterator

from planner.patterns.base import CrissCross, Neighborhood, Pattern, spread
from planner.patterns.catalogue import GROUPS, RADII
from planner.plan.options import Options


def candidates(axes: int, options: Options) -> Iterator[Pattern]:
    """Candidates for a grid of so many axes that the options admit."""
    request, shape = options.request, options.group_shape
    groups = GROUPS[axes] if shape is None or len(shape) != axes else (shape,)
    budget = options.density is not None or options.speedup is not None
    offset = request.offset if request is not None and request.offset is not None else ()
    offset = offset if len(offset) == axes else ()
    pooled = request is not None and request.pooled
    for group in groups:
        if axes > 1 and (request is None or request.kind == "crisscross"):
            named = request.axes if request is not None else None
            kinds = (named,) if named else ("lines",) if axes == 2 else ("planes", "lines") if budget else ("planes",)
            yield from (CrissCross(group, kind, offset, pooled) for kind in kinds)
        if (request is None and budget) or (request is not None and request.kind == "neighborhood"):
            edge = (request.edge if request is not None else None) or "clamp"
            radius = request.radius if request is not None else None
            radii = [radius] if radius is not None else [(r,) for r in (RADII if budget else RADII[:1])]
            yield from (
                Neighborhood(group, spread(r, axes), edge, offset, pooled) for r in radii if len(r) in (1, axes)
            )
