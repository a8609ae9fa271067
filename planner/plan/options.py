"""What a caller asks of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from planner.errors import BadOption
from planner.patterns.layout import TokenLayout
from planner.patterns.spelling import PatternRequest, parse_group, parse_request, with_field_names_of_today
from planner.plan.noise_level import NoiseLevel
from planner.shapes import times


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

    def __post_init__(self) -> None:
        if self.pattern is not None:
            object.__setattr__(self, "pattern", with_field_names_of_today(self.pattern))

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
