"""The plan: what was decided for every attention site, and why. The only value that crosses from deciding to executing.

Saved as JSON that a person can read and diff; reading it back runs no code, bounds every size and checks every field.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import torch

from planner.errors import BadPlanFile, MalformedValue, PlannerError, clip
from planner.patterns.base import Pattern
from planner.patterns.catalogue import catalogue
from planner.patterns.density import rules_density
from planner.patterns.groups import GroupGrid
from planner.patterns.layout import TokenLayout
from planner.patterns.reach import plan_reach
from planner.patterns.rules import SEPARATOR, Rules
from planner.patterns.spelling import with_field_names_of_today
from planner.plan import serialization
from planner.plan.atomic_write import write_text
from planner.plan.noise_level import NoiseLevel
from planner.plan.options import Options
from planner.plan.quality import Certificate
from planner.plan.target import Target
from planner.plan.upgrade import PLAN_VERSION, upgrade_plan

MAX_SLOTS = 2**20
"""Heads of a site in its whole batch: a kernel's head table has an entry for each."""

FEW_PATTERNS, MANY_PATTERNS = 4, 100
"""A plan that follows few patterns on a layout, or could follow many, has kernels of its own: a Hopper kernel of 35
patterns spills 216 bytes of its producer's registers, one of 256 spills 2,452.
"""


@dataclass(frozen=True)
class Decision:
    """What one attention site does, and why.

    layout: spelling of the token layout, ``unknown`` where it is not known.
    pattern: spelling of the pattern, ``dense`` where none applies; of the rules (planner.patterns.rules) where
    heads or noise levels differ.
    density, flops, seconds: on average over heads and noise levels; dense_flops, dense_seconds: of the same site as
    dense attention.
    """

    site: str
    layout: str
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    dtype: str
    pattern: str
    reason: str
    density: float
    flops: int
    seconds: float
    dense_flops: int
    dense_seconds: float

    @property
    def is_sparse(self) -> bool:
        """Whether a pattern applies, to some head at some noise level."""
        return self.pattern != "dense"

    @property
    def is_gated(self) -> bool:
        """Whether the noise level decides at every step which pattern applies."""
        return bool(self.rules.levels)

    @property
    def rules(self) -> Rules:
        """What its heads do at which noise levels; raises BadSpelling or MalformedValue."""
        return Rules.parse(self.pattern)

    @property
    def shape(self) -> tuple[int, ...]:
        """What must agree for the decision to hold."""
        return (self.batch, self.heads, self.kv_heads, self.queries, self.keys, self.head_dim)

    def parsed(self) -> tuple[Rules, TokenLayout | None]:
        """Return rules and layout as values; raises BadSpelling or MalformedValue."""
        return self.rules, None if self.layout == "unknown" else TokenLayout.parse(self.layout)

    @property
    def own_grid(self) -> TokenLayout | None:
        """Its layout, if it attends among the tokens of one grid and of global tokens; None of other sites."""
        _, layout = self.parsed()
        fits = layout is not None and len(layout.grids) == 1 and self.queries == self.keys == layout.tokens
        return layout if fits else None

    def respelled(self) -> Decision:
        """Return the decision with its pattern as spelled today; raises BadSpelling, MalformedValue or UnknownName."""
        return replace(self, pattern=str(self.rules), reason=with_field_names_of_today(self.reason))

    def as_dense(self, reason: str) -> Decision:
        """Return the decision that leaves the site dense. reason: why."""
        costs = {"density": 1.0, "flops": self.dense_flops, "seconds": self.dense_seconds}
        return replace(self, pattern="dense", reason=reason, **costs)

    def verify(self) -> None:
        """Check the decision; raises MalformedValue, BadSpelling or UnknownName."""
        rules, layout = self.parsed()
        rules.verify(self.heads)
        slots = self.batch * self.heads
        self._require(1 <= slots <= MAX_SLOTS, f"{slots} heads in the whole batch are not 1 to {MAX_SLOTS}")
        self._require(1 <= self.kv_heads <= self.heads, f"it has {self.kv_heads} key heads for {self.heads} heads")
        is_dtype = isinstance(getattr(torch, self.dtype, None), torch.dtype)
        self._require(is_dtype, f"{clip(self.dtype)!r} is no dtype of torch")
        if not rules.patterns:
            self._require(self.density == 1.0, f"dense has density {self.density}")
            return
        self._require(layout is not None and len(layout.grids) == 1, f"a pattern needs one grid, not {self.layout!r}")
        assert layout is not None
        self._require(layout.tokens == self.queries == self.keys, f"the layout has {layout.tokens} tokens")
        sizes = layout.grid.sizes
        for pattern in rules.patterns:
            fits = len(sizes) == len(pattern.group) and all(g <= n for g, n in zip(pattern.group, sizes, strict=True))
            self._require(fits, f"{pattern} does not fit in {self.layout}")
        density = rules_density(rules, layout, self.heads)
        self._require(math.isclose(density, self.density, rel_tol=1e-9), f"density is {density}, not {self.density}")

    def _require(self, condition: bool, fault: str) -> None:
        if not condition:
            raise MalformedValue("decision", fault, "Plan again.", where=self.site)


@dataclass(frozen=True)
class Plan:
    """Decisions for all attention sites of a model at one set of input shapes.

    model: class name; inputs: the call's tensors with shapes and dtypes; target: name of the target planned for.
    noise: what tells the noise level (planner.provenance.find_noise_level), None where no site is gated.
    other_flops, other_seconds: matrix products outside attention, for one step. certificate: what was measured of the
    plan's samples, where it was tuned for a quality.
    """

    version: int = field(default=PLAN_VERSION, kw_only=True)
    model: str
    inputs: str
    target: str
    options: Options
    decisions: tuple[Decision, ...]
    noise: str | None
    other_flops: int
    other_seconds: float
    certificate: Certificate | None = None

    @property
    def attention_seconds(self) -> float:
        """Predicted time of all attention of a step as planned."""
        return sum(decision.seconds for decision in self.decisions)

    @property
    def dense_attention_seconds(self) -> float:
        """Predicted time of all attention of a step if dense."""
        return sum(decision.dense_seconds for decision in self.decisions)

    @property
    def attention_speedup(self) -> float:
        """Predicted time of dense attention over that of planned attention."""
        return self.dense_attention_seconds / self.attention_seconds if self.attention_seconds else 1.0

    @property
    def step_speedup(self) -> float:
        """Predicted time of a dense step over that of a planned step; matrix products and attention only."""
        return _ratio(self.dense_attention_seconds + self.other_seconds, self.attention_seconds + self.other_seconds)

    @property
    def bound(self) -> float:
        """Attention speed-up if time went with attended pairs alone: dense over planned FLOPs.

        Where grouped kernels multiply at a higher rate than dense ones, as on an H100, more is predicted and measured.
        """
        return _ratio(sum(d.dense_flops for d in self.decisions), sum(d.flops for d in self.decisions))

    @property
    def step_bound(self) -> float:
        """Step speed-up if attention took no time at all (Amdahl)."""
        return _ratio(self.dense_attention_seconds + self.other_seconds, self.other_seconds)

    def reach(self) -> tuple[str, int | None]:
        """Return the longest layout with a grid, and after how many of its sites, at most, its grid tokens have mixed.

        That is at the noise levels where it takes longest. None if they never do; an empty layout where no site has a
        grid.
        """
        gridded = [(decision.rules, layout) for decision in self.decisions if (layout := decision.own_grid) is not None]
        if not gridded:
            return "", None
        longest = max((layout for _, layout in gridded), key=lambda layout: layout.tokens)
        sizes = longest.grid.sizes
        sites = [rules for rules, layout in gridded if layout == longest]
        edges = sorted({0.0, 1.0}.union(*(rules.levels for rules in sites)))
        reaches = [
            plan_reach([_farthest(rules, (above + up_to) / 2, sizes) for rules in sites])
            for above, up_to in pairwise(edges)
        ]
        return str(longest), None if None in reaches else max(reach for reach in reaches if reach is not None)

    def verify(self) -> Plan:
        """Return the plan itself; raises MalformedValue, BadSpelling, BadOption or UnknownName."""
        Target.named(self.target)
        self.options.verify()
        names = [decision.site for decision in self.decisions]
        if len(set(names)) != len(names):
            raise MalformedValue("plan", "two decisions are for one site", "Plan again.")
        for decision in self.decisions:
            decision.verify()
        if self.certificate is not None:
            self.certificate.verify()
        if self.noise is not None:
            NoiseLevel.parse(self.noise)
        elif any(decision.is_gated for decision in self.decisions):
            raise MalformedValue("plan", "a site is gated and nothing tells the noise level", "Plan again.")
        return self

    def to_json(self) -> str:
        """Return the plan as indented JSON; ``Plan.from_json(plan.to_json()) == plan``."""
        return serialization.to_json(self)

    @cached_property
    def kernel_patterns(self) -> Mapping[str, str]:
        """For each layout the patterns that kernels are made for, where sites differ by head or noise level.

        All sites have the same kernels: those of the few patterns that they follow, or else, where these are not too
        many, of all that evidence offers, so that the plans that tuning tries have the same kernels too.
        """
        found = defaultdict[str, set[str]](set)
        for decision in self.decisions:
            if len(decision.rules.rules) > 1:
                found[decision.layout].update(map(str, decision.rules.patterns))
        for layout, patterns in found.items():
            offered = catalogue(TokenLayout.parse(layout))
            if len(patterns) > FEW_PATTERNS and len(offered) <= MANY_PATTERNS:
                patterns.update(map(str, offered))
        return {layout: SEPARATOR.join(sorted(patterns)) for layout, patterns in found.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a file, whole or not at all."""
        write_text(path, self.to_json())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read a plan of any version from a file; raises BadPlanFile or PlanVersion."""
        return Plan.from_json(serialization.read_text(path), str(path))

    @staticmethod
    def from_json(text: str, name: str = "plan") -> Plan:
        """Read a plan of any version from JSON; raises BadPlanFile or PlanVersion, naming the field at fault."""
        plan = serialization.from_json(text, Plan, name, upgrade_plan)
        try:
            return plan.respelled().verify()
        except PlannerError as error:
            raise BadPlanFile(name, error.in_a_line()) from error

    def respelled(self) -> Plan:
        """Return the plan with patterns as spelled today; raises BadSpelling, MalformedValue or UnknownName."""
        return replace(self, decisions=tuple(decision.respelled() for decision in self.decisions))


def _farthest(rules: Rules, level: float, sizes: Sequence[int]) -> tuple[Pattern, tuple[int, ...]]:
    """Return the pattern that reaches farthest of those that a site follows at a noise level, and its group counts."""
    patterns = [rule.pattern for rule in rules.at(level)]
    grids = [pattern.grid(sizes) if pattern.group else GroupGrid(tuple(sizes), tuple(sizes)) for pattern in patterns]
    layers = zip(patterns, (grid.counts for grid in grids), strict=True)
    return min(layers, key=lambda layer: layer[0].reach(layer[1]) or math.inf)


def _ratio(over: float, under: float) -> float:
    return over / under if under else 1.0
