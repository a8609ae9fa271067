"""Patterns: which groups attend to which.

A pattern *is* its ``mask_mod``: the brute-force meaning, a function of two token indices. Its ``boxes`` say the same as
a disjoint union of products of axis sets, from which lists of key groups, densities and index maps follow in closed
form; property tests hold the two together. Its spelling follows from its dataclass fields and parses back::

    dense
    neighborhood{radius=1,edge=clamp,group=16x16}     GRAT-B (arXiv 2505.14687): the surrounding groups
    crisscross{axes=planes,group=4x8x8}               GRAT-X: the groups that share a coordinate

All take ``offset=8x8``: the first group along each axis then has so many tokens, and all borders are shifted. And
all take ``pooled=mean``: each group that is not read is pooled to one key and one value, the means of its own, which
count as often as it has tokens; what lies far is then coarse instead of absent.

A new pattern is a file beside this one, which is found there, or a plug-in's (docs/add-a-pattern.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, replace
from enum import IntEnum
from functools import lru_cache
from typing import Self

import torch

from planner.errors import MalformedValue
from planner.patterns.axis_set import AxisSet
from planner.patterns.fields import PatternField, fields_of
from planner.patterns.groups import GroupGrid, front_pad_of
from planner.patterns.layout import TokenLayout
from planner.registry import Registry
from planner.shapes import times

Box = tuple[AxisSet, ...]
"""One axis set per axis: the product of what is read along each."""

MaskMod = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``mask_mod(q_idx, kv_idx)``: whether query tokens attend to key tokens, by sequence index, broadcast."""


class Breadth(IntEnum):
    """How widely to look for candidates; each step includes the ones before it."""

    UNASKED = 0
    """Nothing is asked: what is tried at any site."""
    NAMED = 1
    """The kind of pattern is named, and its fields are left open."""
    BUDGET = 2
    """A density or a speed-up is to be met."""
    EVIDENCE = 3
    """All that is worth measuring on a model's own attention."""


@dataclass(frozen=True)
class Pattern(ABC):
    """Which groups of a grid attend to which; global tokens attend to and are attended by everything.

    group: tokens of a group along each axis. offset: tokens of the first group along each axis, where it is smaller.
    pooled: whether groups that are not read are read as their means.
    """

    group: tuple[int, ...] = field(metadata={"least": 1})
    offset: tuple[int, ...] = field(default=(), kw_only=True)
    pooled: bool = field(default=False, kw_only=True, metadata={"word": "mean"})

    def __post_init__(self) -> None:
        for name, each in self.fields().items():
            value = getattr(self, name)
            if each.is_spread and len(value) == 1:
                object.__setattr__(self, name, value * len(self.group))

    @abstractmethod
    def attends(
        self, query: Sequence[torch.Tensor], key: Sequence[torch.Tensor], counts: Sequence[int]
    ) -> torch.Tensor:
        """Tell whether query groups read key groups.

        query, key: their coordinates, one int64 tensor an axis, all of which broadcast together to the shape of the
        result, which is boolean. counts: groups along each axis.
        """

    @abstractmethod
    def boxes(self) -> tuple[Box, ...]:
        """Return the same as disjoint boxes around the query group."""

    @abstractmethod
    def reach(self, counts: Sequence[int]) -> int | None:
        """Count layers until every group influences every other through grid tokens alone; None if never."""

    @classmethod
    def candidates(cls, group: tuple[int, ...], counts: Sequence[int], breadth: Breadth) -> Iterator[Self]:
        """Yield the patterns of this kind that are worth judging with such groups, of which there are ``counts``.

        Without an own rule, the one with the defaults of all fields, where its kind is named.
        """
        if breadth >= Breadth.NAMED:
            yield cls(group)

    def list_length(self, counts: Sequence[int]) -> int:
        """Count the key groups at most of a list made at run time, where such lists say what query groups read.

        0 where ``boxes`` says it; else ``boxes`` is what may be listed at most.
        """
        return 0

    def is_too_wide(self, counts: Sequence[int]) -> bool:
        """Tell whether a pattern that can be narrower, as by a radius, is so wide that it reads the whole grid."""
        return False

    @classmethod
    def fields(cls) -> Mapping[str, PatternField]:
        """Return what a spelling names, in order: the pattern's own fields, then those of all patterns."""
        return _spelled_fields(cls)

    @classmethod
    def example(cls) -> str:
        """Return a spelling, for messages."""
        required = {name: each.example for name, each in cls.fields().items() if each.default is MISSING}
        return str(cls(**required))

    @property
    def near(self) -> Self:
        """The pattern without pooled groups."""
        return replace(self, pooled=False) if self.pooled else self

    @property
    def front_pad(self) -> tuple[int, ...]:
        """Tokens along each axis that the first group lacks."""
        return front_pad_of(self.group, self.offset)

    @property
    def reads_evenly(self) -> bool:
        """Whether every query group reads equally many groups, wherever it is."""
        return all(axis_set.reads_evenly for box in self.boxes() for axis_set in box)

    def grid(self, sizes: Sequence[int]) -> GroupGrid:
        """Cut a grid of so many tokens into the pattern's groups."""
        return GroupGrid(tuple(sizes), self.group, self.offset)

    def shifted(self) -> Self:
        """Return the pattern with its groups' borders moved by half a group along every axis, over any offset."""
        offset = tuple((o + g // 2) % g for o, g in zip(self.offset or (0,) * len(self.group), self.group, strict=True))
        return replace(self, offset=offset if any(offset) else ())

    def mask_mod(self, layout: TokenLayout) -> MaskMod:
        """Return the pattern's meaning on the tokens of a layout with one grid."""
        grid = self.grid(layout.grid.sizes)

        def attends(q_idx: torch.Tensor, kv_idx: torch.Tensor) -> torch.Tensor:
            q, kv = (grid.group_of(layout.coordinates(index)) for index in (q_idx, kv_idx))
            return layout.is_global(q_idx) | layout.is_global(kv_idx) | self.attends(q, kv, grid.counts)

        return attends

    def verify(self) -> Self:
        """Return the pattern itself; raises MalformedValue."""
        self._require(1 <= len(self.group) <= 3, f"group={times(self.group)} is not one to three sizes")
        for name, each in self.fields().items():
            value = getattr(self, name)
            if value == each.default == ():
                continue
            if isinstance(value, tuple) and len(value) != len(self.group):
                fault = f"{name}={times(value) or '()'} is not one number an axis of group={times(self.group)}"
                self._require(False, fault)
            self._require_readable(each, each.write(value))
        fits = all(o < g for o, g in zip(self.offset, self.group, strict=False))
        fault = f"offset={times(self.offset)} is not one number an axis, less than the group's, of which one is not 0"
        self._require(not self.offset or (fits and any(self.offset)), fault)
        return self

    def _require_readable(self, each: PatternField, spelled: str) -> None:
        try:
            if spelled:
                each.read(spelled)
        except ValueError as fault:
            self._require(False, str(fault))

    def _require(self, holds: bool, fault: str) -> None:
        if not holds:
            raise MalformedValue(str(self), fault, f"Write it like {self.example()!r}.")

    def __str__(self) -> str:
        spelled = ((name, each.write(getattr(self, name))) for name, each in self.fields().items())
        body = ",".join(f"{name}={text}" for name, text in spelled if text)
        kind = PATTERNS.name_of(type(self))
        return f"{kind}{{{body}}}" if body else kind


@lru_cache
def _spelled_fields(pattern: type[Pattern]) -> Mapping[str, PatternField]:
    found, shared = fields_of(pattern), Pattern.__dataclass_fields__
    return {name: found[name] for name in sorted(found, key=lambda name: name in shared)}


PATTERNS: Registry[type[Pattern]] = Registry("pattern", builtin=["planner.patterns"])
"""The kinds of patterns by name."""
