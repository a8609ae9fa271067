"""Patterns: which groups attend to which.

A pattern *is* its ``mask_mod``: the brute-force meaning, a function of two token indices. Its ``boxes`` say the same as
a disjoint union of products of axis sets, from which lists of key groups, densities and index maps follow in closed
form; property tests hold the two together. Every pattern has a spelling that parses back::

    dense
    neighborhood{radius=1,edge=clamp,group=16x16}     GRAT-B (arXiv 2505.14687): the surrounding groups
    crisscross{axes=planes,group=4x8x8}               GRAT-X: the groups that share a coordinate

Both take ``offset=8x8``: the first group along each axis then has so many tokens, and all borders are shifted. And
both take ``pooled=mean``: each group that is not read is pooled to one key and one value, the means of its own, which
count as often as it has tokens; what lies far is then coarse instead of absent.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal, Self

import torch

from planner.errors import BadSpelling, MalformedValue, times
from planner.patterns.axis_set import All, AxisSet, Edge, Others, Own, Window
from planner.patterns.groups import GroupGrid, front_pad_of
from planner.patterns.layout import TokenLayout

Box = tuple[AxisSet, ...]
"""One axis set per axis: the product of what is read along each."""

MaskMod = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``mask_mod(q_idx, kv_idx)``: whether query tokens attend to key tokens, by sequence index, broadcast."""

EXAMPLES = {
    "dense": "dense",
    "neighborhood": "neighborhood{radius=1,edge=clamp,group=16x16}",
    "crisscross": "crisscross{axes=lines,group=16x16}",
}
MAX_GROUP = 2**20

_OLD_NAMES = {"far": "pooled"}
"""Names of fields in plans and evidence of version 0.1, with those of today."""


class Pattern(ABC):
    """Which groups of a grid attend to which; global tokens attend to and are attended by everything."""

    group: tuple[int, ...]
    offset: tuple[int, ...]
    pooled: bool

    @property
    def near(self) -> Self:
        """The pattern without the means of far groups."""
        return replace(self, pooled=False)  # pyright: ignore[reportArgumentType]

    @property
    def front_pad(self) -> tuple[int, ...]:
        """Tokens along each axis that the first group lacks."""
        return front_pad_of(self.group, self.offset)

    def grid(self, sizes: Sequence[int]) -> GroupGrid:
        """A grid of so many tokens, cut into the pattern's groups."""
        return GroupGrid(tuple(sizes), self.group, self.offset)

    def shifted(self) -> Self:
        """The pattern with its groups' borders moved by half a group along every axis, over any offset it has."""
        offset = tuple((o + g // 2) % g for o, g in zip(self.offset or (0,) * len(self.group), self.group, strict=True))
        return replace(self, offset=offset if any(offset) else ())  # pyright: ignore[reportArgumentType]

    @abstractmethod
    def attends(
        self, query: Sequence[torch.Tensor], key: Sequence[torch.Tensor], counts: Sequence[int]
    ) -> torch.Tensor:
        """Whether query groups read key groups: one broadcastable int64 coordinate tensor per axis -> bool."""

    @abstractmethod
    def boxes(self) -> tuple[Box, ...]:
        """The same as disjoint boxes around the query group."""

    @abstractmethod
    def reach(self, counts: Sequence[int]) -> int | None:
        """Layers until every group influences every other through grid tokens alone; None if never."""

    def mask_mod(self, layout: TokenLayout) -> MaskMod:
        """The pattern's meaning on the tokens of a layout with one grid."""
        grid = self.grid(layout.grid.sizes)

        def attends(q_idx: torch.Tensor, kv_idx: torch.Tensor) -> torch.Tensor:
            q, kv = (grid.group_of(layout.coordinates(index)) for index in (q_idx, kv_idx))
            return layout.is_global(q_idx) | layout.is_global(kv_idx) | self.attends(q, kv, grid.counts)

        return attends

    def verify(self) -> Pattern:
        """Return the pattern itself; raises MalformedValue."""
        if not 1 <= len(self.group) <= 3 or not all(1 <= g <= MAX_GROUP for g in self.group):
            fault = f"group={times(self.group)} is not one to three sizes between 1 and {MAX_GROUP}"
            raise MalformedValue(str(self), fault, f"Write it like {EXAMPLES['crisscross']!r}.")
        fits = len(self.offset) == len(self.group) and all(
            0 <= o < g for o, g in zip(self.offset, self.group, strict=True)
        )
        if self.offset and not (fits and any(self.offset)):
            fault = (
                f"offset={times(self.offset)} is not one number an axis, less than the group's, of which one is not 0"
            )
            raise MalformedValue(str(self), fault, "Pass half the group, say, or leave it out.")
        return self

    def _spelled_rest(self) -> str:
        return (f",offset={times(self.offset)}" if self.offset else "") + ",pooled=mean" * self.pooled


@dataclass(frozen=True)
class Dense(Pattern):
    """Every token attends to every token."""

    group: tuple[int, ...] = ()
    offset: tuple[int, ...] = ()
    pooled: bool = False

    def attends(
        self, query: Sequence[torch.Tensor], key: Sequence[torch.Tensor], counts: Sequence[int]
    ) -> torch.Tensor:
        shape = torch.broadcast_shapes(*(x.shape for x in (*query, *key)))
        return torch.ones(shape, dtype=torch.bool, device=query[0].device)

    def mask_mod(self, layout: TokenLayout) -> MaskMod:
        return lambda q_idx, kv_idx: torch.ones(
            torch.broadcast_shapes(q_idx.shape, kv_idx.shape), dtype=torch.bool, device=q_idx.device
        )

    def boxes(self) -> tuple[Box, ...]:
        return (tuple(All() for _ in self.group),)

    def reach(self, counts: Sequence[int]) -> int | None:
        return 1

    def verify(self) -> Dense:
        return self

    def __str__(self) -> str:
        return "dense"


@dataclass(frozen=True)
class Neighborhood(Pattern):
    """The groups within ``radius`` along every axis (GRAT-B: radius 1, the 3x3 surrounding groups)."""

    group: tuple[int, ...]
    radius: tuple[int, ...]
    edge: Edge = "clamp"
    offset: tuple[int, ...] = ()
    pooled: bool = False

    def attends(
        self, query: Sequence[torch.Tensor], key: Sequence[torch.Tensor], counts: Sequence[int]
    ) -> torch.Tensor:
        near = list[torch.Tensor]()
        for q, k, radius, count in zip(query, key, self.radius, counts, strict=True):
            first = q - radius
            if self.edge == "clamp":
                first = first.clamp(0, max(0, count - 2 * radius - 1))
            near.append((first <= k) & (k <= first + 2 * radius))
        return reduce(torch.logical_and, near)

    def boxes(self) -> tuple[Box, ...]:
        return (tuple(Window(radius, self.edge) for radius in self.radius),)

    def reach(self, counts: Sequence[int]) -> int | None:
        layers = 1
        if self.pooled:
            return layers
        for count, radius in zip(counts, self.radius, strict=True):
            if count > 1 and radius == 0:
                return None
            if count > 1:
                hops = -(-(count - 1) // radius)
                layers = max(layers, hops - 1 if self.edge == "clamp" else hops)
        return layers

    def verify(self) -> Neighborhood:
        super().verify()
        if len(self.radius) != len(self.group) or any(not 0 <= r <= MAX_GROUP for r in self.radius):
            raise MalformedValue(str(self), "radius is not one number an axis, at least 0", "Pass radius=1, say.")
        if self.edge not in ("clamp", "clip"):
            raise MalformedValue(str(self), f"edge={self.edge}", "edge is clamp or clip.")
        return self

    def __str__(self) -> str:
        uniform = len(set(self.radius)) == 1
        radius = self.radius[0] if uniform else times(self.radius)
        return f"neighborhood{{radius={radius},edge={self.edge},group={times(self.group)}{self._spelled_rest()}}}"


@dataclass(frozen=True)
class CrissCross(Pattern):
    """The groups on the lines (at most one coordinate differs) or planes (at least one agrees) through the query's.

    In 2-D both are row and column, GRAT-X. In 3-D GRAT's published code is the union of planes.
    """

    group: tuple[int, ...]
    axes: Literal["lines", "planes"] = "lines"
    offset: tuple[int, ...] = ()
    pooled: bool = False

    def attends(
        self, query: Sequence[torch.Tensor], key: Sequence[torch.Tensor], counts: Sequence[int]
    ) -> torch.Tensor:
        agreeing = sum((q == k).long() for q, k in zip(query, key, strict=True))
        assert isinstance(agreeing, torch.Tensor)
        return agreeing >= (len(self.group) - 1 if self.axes == "lines" else 1)

    def boxes(self) -> tuple[Box, ...]:
        axes = range(len(self.group))
        if self.axes == "planes":
            # Told apart by the first axis that agrees: those before it differ, those after it are free.
            return tuple(
                tuple(Others() if a < first else Own() if a == first else All() for a in axes) for first in axes
            )
        # The whole line along the last axis, then along each other axis what that line does not hold.
        last = len(self.group) - 1
        lines = [last, *range(last)]
        return tuple(
            tuple((All() if line == last else Others()) if a == line else Own() for a in axes) for line in lines
        )

    def reach(self, counts: Sequence[int]) -> int | None:
        varying = sum(count > 1 for count in counts)
        if self.pooled:
            return 1
        if self.axes == "lines":
            return max(1, varying)
        if varying < len(counts) or not varying:
            return 1
        return 2 if varying > 1 else None

    def verify(self) -> CrissCross:
        super().verify()
        if self.axes not in ("lines", "planes"):
            raise MalformedValue(str(self), f"axes={self.axes}", "axes is lines or planes.")
        return self

    def __str__(self) -> str:
        return f"crisscross{{axes={self.axes},group={times(self.group)}{self._spelled_rest()}}}"


@dataclass(frozen=True)
class PatternRequest:
    """A pattern as a user asks for it: what is left out is the planner's to choose."""

    kind: str
    group: tuple[int, ...] | None = None
    radius: tuple[int, ...] | None = None
    edge: Edge | None = None
    axes: Literal["lines", "planes"] | None = None
    offset: tuple[int, ...] | None = None
    pooled: bool = False

    def pattern(self) -> Pattern:
        """The one pattern it names; raises MalformedValue if its group is left open."""
        if self.kind == "dense":
            return Dense()
        if self.group is None:
            raise MalformedValue(self.kind, "it names no group", f"Write it like {EXAMPLES[self.kind]!r}.")
        if self.kind == "crisscross":
            return CrissCross(self.group, self.axes or "lines", self.offset or (), self.pooled).verify()
        radius = self.radius if self.radius is not None else (1,)
        edge, offset = self.edge or "clamp", self.offset or ()
        return Neighborhood(self.group, spread(radius, len(self.group)), edge, offset, self.pooled).verify()

    def with_group(self, group: tuple[int, ...]) -> PatternRequest:
        return replace(self, group=group)


def kind_of(pattern: Pattern) -> str:
    """``dense``, ``neighborhood`` or ``crisscross``."""
    return type(pattern).__name__.lower()


def spread(radius: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """A radius of one number holds for every axis."""
    return radius * axes if len(radius) == 1 else radius


def parse_pattern(text: str) -> Pattern:
    """Read a complete spelling; ``parse_pattern(str(p)) == p``. Raises BadSpelling or MalformedValue."""
    return parse_request(text).pattern()


def parse_request(text: str) -> PatternRequest:
    """Read a spelling in which all but the kind may be left out: ``crisscross``, ``neighborhood{radius=2}``."""
    match = re.fullmatch(r"\s*([a-z]+)\s*(?:\{(.{0,200})\})?\s*", text)
    if not match or match[1] not in EXAMPLES:
        raise BadSpelling(
            "pattern", text, f"it does not begin with one of {', '.join(EXAMPLES)}", EXAMPLES["crisscross"]
        )
    kind, example = match[1], EXAMPLES[match[1]]
    fields = _parse_fields(match[2] or "", text, example)
    grouped = ("group", "offset", "pooled")
    allowed = {"dense": (), "neighborhood": (*grouped, "radius", "edge"), "crisscross": (*grouped, "axes")}[kind]
    for name in fields:
        if name not in allowed:
            raise BadSpelling("pattern", text, f"{kind} has no field {name!r}", example)
    edge, axes = fields.get("edge"), fields.get("axes")
    if edge not in (None, "clamp", "clip"):
        raise BadSpelling("pattern", text, f"edge is clamp or clip, not {edge!r}", example)
    if axes not in (None, "lines", "planes"):
        raise BadSpelling("pattern", text, f"axes is lines or planes, not {axes!r}", example)
    if fields.get("pooled") not in (None, "mean"):
        raise BadSpelling("pattern", text, f"pooled is mean, or left out, not {fields['pooled']!r}", example)
    group = parse_group(fields["group"]) if "group" in fields else None
    radius = _parse_times(fields["radius"], "radius", "1", least=0) if "radius" in fields else None
    offset = _parse_times(fields["offset"], "offset", "8x8", least=0) if "offset" in fields else None
    return PatternRequest(kind, group, radius, edge, axes, offset, "pooled" in fields)


def parse_group(text: str) -> tuple[int, ...]:
    """Read a group shape such as ``16x16`` or ``4x8x8``; raises BadSpelling."""
    return _parse_times(text, "group", "16x16", least=1)


def _parse_fields(body: str, text: str, example: str) -> Mapping[str, str]:
    fields = dict[str, str]()
    for item in filter(None, (item.strip() for item in body.split(","))):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not value or _OLD_NAMES.get(name, name) in fields:
            raise BadSpelling("pattern", text, f"{item!r} is not one FIELD=VALUE", example)
        fields[_OLD_NAMES.get(name, name)] = value
    return fields


def _parse_times(text: str, kind: str, example: str, least: int) -> tuple[int, ...]:
    parts = text.strip().split("x")
    if not 1 <= len(parts) <= 3 or not all(p.isascii() and p.isdigit() and len(p) <= 7 for p in parts):
        raise BadSpelling(kind, text, "it is not one to three numbers joined by x", example)
    numbers = tuple(map(int, parts))
    if any(not least <= number <= MAX_GROUP for number in numbers):
        raise BadSpelling(kind, text, f"each number lies between {least} and {MAX_GROUP}", example)
    return numbers
