"""The plan: what was decided for every attention site, and why. The only value that crosses from deciding to executing.

Saved as JSON that a person can read and diff; reading it back runs no code, bounds every size and checks every field.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from planner.errors import BadPlanFile, MalformedValue, PlannerError, PlanVersion
from planner.patterns.base import Pattern
from planner.patterns.catalogue import catalogue
from planner.patterns.density import rules_density
from planner.patterns.groups import GroupGrid
from planner.patterns.layout import TokenLayout
from planner.patterns.reach import plan_reach
from planner.patterns.rules import SEPARATOR, Rules
from planner.plan.atomic_write import write_text
from planner.plan.noise_level import NoiseLevel
from planner.plan.options import Options
from planner.plan.quality import Certificate
from planner.plan.target import Target

PLAN_VERSION = 3
FEW_PATTERNS, MANY_PATTERNS = 4, 100
"""A plan that follows few patterns on a layout, or could follow many, has kernels of its own: a Hopper kernel of 35
patterns spills 216 bytes of its producer's registers, one of 256 spills 2,452.
"""

MAX_BYTES = 16 * 2**20
MAX_SITES = 100_000
MAX_TEXT = 2**16
MAX_CASES = 10_000


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
        """Rules and layout as values; raises BadSpelling or MalformedValue."""
        return self.rules, None if self.layout == "unknown" else TokenLayout.parse(self.layout)

    @property
    def own_grid(self) -> TokenLayout | None:
        """Its layout, if it attends among the tokens of one grid and of global tokens; None of other sites."""
        _, layout = self.parsed()
        fits = layout is not None and len(layout.grids) == 1 and self.queries == self.keys == layout.tokens
        return layout if fits else None

    def as_dense(self, reason: str) -> Decision:
        """The same site left dense, and why."""
        costs = {"density": 1.0, "flops": self.dense_flops, "seconds": self.dense_seconds}
        return replace(self, pattern="dense", reason=reason, **costs)

    def verify(self) -> None:
        """Raises MalformedValue or BadSpelling."""
        rules, layout = self.parsed()
        rules.verify(self.heads)
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

    model: str
    inputs: str
    target: str
    options: Options
    decisions: tuple[Decision, ...]
    noise: str | None
    other_flops: int
    other_seconds: float
    certificate: Certificate | None = None
    version: int = PLAN_VERSION

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
        """The longest layout with a grid, and after how many of its sites, at most, all its grid tokens have mixed.

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
        """The plan as indented JSON; ``Plan.from_json(plan.to_json()) == plan``."""
        return json.dumps({"version": self.version, **asdict(self)}, indent=1) + "\n"

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
        """Read a plan from a file; raises BadPlanFile or PlanVersion."""
        name = str(path)
        try:
            if Path(path).stat().st_size > MAX_BYTES:
                raise BadPlanFile(name, f"it is larger than {MAX_BYTES >> 20} MiB")
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise BadPlanFile(name, error.strerror or "it cannot be opened") from error
        except UnicodeDecodeError as error:
            raise BadPlanFile(name, "it is not text") from error
        return Plan.from_json(text, name)

    @staticmethod
    def from_json(text: str, name: str = "plan") -> Plan:
        """Read a plan from JSON; raises BadPlanFile or PlanVersion, naming the field at fault."""

        def refuse(constant: str) -> Any:
            raise BadPlanFile(name, f"it holds {constant}")

        try:
            data = json.loads(text, parse_constant=refuse)
        except (ValueError, RecursionError) as error:
            if isinstance(error, PlannerError):
                raise
            raise BadPlanFile(name, f"it is not JSON: {str(error)[:80]}") from error
        if not isinstance(data, dict) or "version" not in data:
            raise BadPlanFile(name, "it has no version")
        if data["version"] != PLAN_VERSION:
            raise PlanVersion(name, data["version"], PLAN_VERSION)
        record = _Record(name)
        decisions = record.get(data, "decisions", list)
        if len(decisions) > MAX_SITES:
            raise BadPlanFile(name, f"it has {len(decisions)} sites")
        certificate = data.get("certificate")
        plan = Plan(
            **record.fields(data, Plan, leave_out=("options", "decisions", "certificate")),
            options=Options(**record.fields(record.get(data, "options", dict), Options)),
            decisions=tuple(Decision(**record.fields(item, Decision)) for item in decisions),
            certificate=None if certificate is None else record.certificate(certificate),
        )
        try:
            return plan.verify()
        except PlannerError as error:
            raise BadPlanFile(name, str(error).replace("\n ", "")) from error


@dataclass(frozen=True)
class Change:
    """A field in which two plans differ; ``where`` is a site, or ``plan``."""

    where: str
    field: str
    a: object
    b: object


def difference(a: Plan, b: Plan) -> list[Change]:
    """Every field in which two plans differ, the plan's own first, then site by site."""
    changes = _changes("plan", a, b, leave_out=("decisions", "options"))
    changes += _changes("options", a.options, b.options)
    ours, theirs = ({decision.site: decision for decision in plan.decisions} for plan in (a, b))
    for site in dict.fromkeys([*ours, *theirs]):
        if site in ours and site in theirs:
            changes += _changes(site, ours[site], theirs[site])
        else:
            changes.append(
                Change(site, "site", "present" if site in ours else "absent", "present" if site in theirs else "absent")
            )
    return changes


def _changes(where: str, a: Any, b: Any, leave_out: Sequence[str] = ()) -> list[Change]:
    names = [field.name for field in fields(a) if field.name not in leave_out]
    return [
        Change(where, name, getattr(a, name), getattr(b, name))
        for name in names
        if getattr(a, name) != getattr(b, name)
    ]


class _Record:
    """Reads the fields of a dataclass out of JSON objects, each of the declared type and nothing else."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get(self, data: Any, key: str, kind: type) -> Any:
        value = data.get(key) if isinstance(data, dict) else None
        if not isinstance(value, kind):
            raise BadPlanFile(self.name, f"{key!r} is not a {kind.__name__}")
        return value

    def fields(self, data: Any, of: type, leave_out: Sequence[str] = ()) -> dict[str, Any]:
        expected = {field.name: str(field.type) for field in fields(of) if field.name not in leave_out}
        if not isinstance(data, dict) or set(data) - set(leave_out) != set(expected):
            raise BadPlanFile(self.name, f"the fields of a {of.__name__} are {', '.join(expected)}")
        return {name: self._value(name, data[name], kind) for name, kind in expected.items()}

    def certificate(self, data: Any) -> Certificate:
        rest = self.fields(data, Certificate, leave_out=("cases", "values"))
        cases, values = self.get(data, "cases", list), self.get(data, "values", list)
        return Certificate(
            **rest,
            cases=tuple(str(self._value("cases", case, "str")) for case in cases[:MAX_CASES]),
            values=tuple(float(self._value("values", value, "float")) for value in values[:MAX_CASES]),
        )

    def _value(self, name: str, value: Any, kind: str) -> Any:
        if value is None and kind.endswith("| None"):
            return None
        kind = kind.removesuffix(" | None")
        if kind == "bool":
            if isinstance(value, bool):
                return value
        elif kind == "float" and isinstance(value, int | float) and not isinstance(value, bool):
            if 0 <= value < 1e30:
                return float(value)
        elif kind == "int" and isinstance(value, int) and not isinstance(value, bool):
            if 0 <= value < 2**100:
                return value
        elif kind == "str" and isinstance(value, str) and len(value) <= MAX_TEXT:
            return value
        raise BadPlanFile(self.name, f"{name!r} is no {kind} in range")


def _farthest(rules: Rules, level: float, sizes: Sequence[int]) -> tuple[Pattern, tuple[int, ...]]:
    """Of the patterns that a site's heads follow at a noise level the one that reaches farthest; its group counts."""
    patterns = [rule.pattern for rule in rules.at(level)]
    grids = [pattern.grid(sizes) if pattern.group else GroupGrid(tuple(sizes), tuple(sizes)) for pattern in patterns]
    layers = zip(patterns, (grid.counts for grid in grids), strict=True)
    return min(layers, key=lambda layer: layer[0].reach(layer[1]) or math.inf)


def _ratio(over: float, under: float) -> float:
    return over / under if under else 1.0
