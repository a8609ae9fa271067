"""Allocation: from evidence and a budget to what each head does at each noise level.

Every head of every site, in every range of noise levels, takes one candidate. What that costs is its predicted time,
what it loses is its predicted share in the error of the model's output: the error of the head's output times the
site's sensitivity. A multiple-choice knapsack (planner.search.knapsack) takes the least of one within a budget of
the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypedDict

import torch

from planner.errors import BadEvidence, BadOption, UnknownName, UnreachableQuality
from planner.patterns.base import Pattern
from planner.patterns.dense import Dense
from planner.patterns.density import density
from planner.patterns.layout import TokenLayout
from planner.patterns.rules import Rules
from planner.patterns.spelling import parse_pattern
from planner.plan.evidence import Evidence, SiteEvidence, mean_over
from planner.plan.plan import Decision, Plan
from planner.plan.target import Target
from planner.search.cost import costs_under, dense_seconds, sparse_seconds
from planner.search.decide import site_of
from planner.search.knapsack import Item, solve

RANGES = 3
"""Ranges of noise levels, with as many steps in each."""

ROUNDING = 1e-8
"""Sums of shares miss their whole by less: a budget of exactly what dense takes is met by dense."""


@dataclass(frozen=True)
class Budget:
    """What bounds a choice; exactly one of four.

    error: predicted mean squared error of the model's output, on average over the steps, each range of noise levels
    times its gain. recall: every head keeps at least this share of its softmax mass. density: at most this share of the
    pairs is attended, on average over sites, heads and steps. speedup: attention is predicted to run so much faster.
    """

    error: float | None = None
    recall: float | None = None
    density: float | None = None
    speedup: float | None = None

    def verify(self) -> Budget:
        """Return the budget itself; raises BadOption."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise BadOption("budget", ", ".join(given) or None, f"one of {', '.join(vars(self))}")
        ((name, value),) = given.items()
        if name in ("recall", "density") and not 0 <= value <= 1:
            raise BadOption(name, value, "a share from 0 to 1")
        if name in ("error", "speedup") and not value >= 0:
            raise BadOption(name, value, "a number of at least 0")
        return self

    def __str__(self) -> str:
        return next(f"{name} {value:.3g}" for name, value in vars(self).items() if value is not None)


class Budgets(TypedDict, total=False):
    """The fields of Budget, as keyword arguments."""

    error: float | None
    recall: float | None
    density: float | None
    speedup: float | None


@dataclass(frozen=True)
class Choice:
    """One head of one site in one range: its options, the dense one first, and what they cost and lose.

    seconds: predicted, of the head's share of the site, times the share of the steps. pairs: attended pairs of the head
    over all pairs of all heads and steps. losses: predicted error. recalls: kept softmax mass.
    """

    site: int
    head: int
    range: int
    seconds: tuple[float, ...]
    pairs: tuple[float, ...]
    losses: tuple[float, ...]
    recalls: tuple[float, ...]

    @property
    def of_range(self) -> tuple[int, int]:
        """Its site and range."""
        return self.site, self.range


@dataclass(frozen=True)
class Allocation:
    """A plan, and what it is predicted to do on average over the recorded steps.

    error: of the model's output. density: attended over all pairs of the sites with evidence. seconds: of their
    attention.
    """

    plan: Plan
    error: float
    density: float
    seconds: float


class Allocator:
    """Evidence made ready for a target; each budget then takes a second or so.

    gains: weights of the errors of the ranges of noise levels, 1 by default. ranges: how many. patterns: only these, by
    their spellings; all candidates of the evidence by default. by_head: whether heads of one site may differ.
    """

    def __init__(
        self,
        evidence: Evidence,
        target: Target,
        gains: Sequence[float] = (),
        ranges: int = RANGES,
        patterns: Sequence[str] | None = None,
        by_head: bool = True,
    ) -> None:
        self.evidence, self.target = evidence, target
        self.levels = evidence.ranges(ranges)
        self.gains = tuple(gains) or (1.0,) * len(self.levels)
        if len(self.gains) != len(self.levels):
            raise BadOption("gains", self.gains, f"{len(self.levels)} numbers, one for each range of noise levels")
        self.decisions = [decision for decision in evidence.plan.decisions if decision.site in evidence.sites]
        self.every = sum(each.heads * each.batch * each.queries**2 for each in self.decisions)
        self.patterns = [self._patterns(decision, patterns) for decision in self.decisions]
        self.choices = [choice for number in range(len(self.decisions)) for choice in self._choices(number)]
        self.together = [[at] for at in range(len(self.choices))]
        if not by_head:
            places = range(len(self.choices))
            self.together = [list(alike) for _, alike in groupby(places, key=lambda at: self.choices[at].of_range)]

    def within(self, budget: Budget, only: int | None = None) -> Allocation:
        """The plan that costs least within an error or a recall, or loses least within a density or a speed-up.

        only: a range of noise levels, by its number; everything is dense in the others. Raises BadOption, and
        UnreachableQuality with the best that can be reached.
        """
        budget.verify()
        if budget.recall is not None:
            taken = [
                place
                for alike in self.together
                for place in [_cheapest([self.choices[at] for at in alike], budget.recall)] * len(alike)
            ]
        else:
            taken = self._solved(budget, only)
        return self._allocation(taken, budget)

    def uniform(self, pattern: str) -> Allocation:
        """The plan in which every site, head and step follows one pattern of the evidence; raises UnknownName."""
        for patterns in self.patterns:
            if parse_pattern(pattern) not in patterns:
                raise UnknownName("pattern with evidence", pattern, map(str, patterns))
        places = [patterns.index(parse_pattern(pattern)) for patterns in self.patterns]
        return self._allocation([places[choice.site] for choice in self.choices], Budget())

    def predicted(self, plan: Plan) -> Allocation:
        """What another plan of the same sites is predicted to do; its error is NaN where a pattern has no evidence."""
        rules = {decision.site: decision.rules for decision in plan.decisions}
        error, pairs, seconds = list[float](), list[float](), list[float]()
        for choice in self.choices:
            decision, patterns = self.decisions[choice.site], self.patterns[choice.site]
            at = rules[decision.site].at(self.levels[choice.range][0])
            pattern = next(rule.pattern for rule in at if choice.head in (rule.heads or range(decision.heads)))
            place, site = patterns.index(pattern) if pattern in patterns else None, site_of(decision)
            assert isinstance(site.layout, TokenLayout)
            error.append(math.nan if place is None else choice.losses[place])
            pairs.append(choice.pairs[0] * density(pattern, site.layout))
            faster = sparse_seconds(site, pattern, self.target) / dense_seconds(site, self.target)
            seconds.append(choice.seconds[0] * faster)
        return Allocation(plan, sum(error), math.fsum(pairs), math.fsum(seconds))

    def _solved(self, budget: Budget, only: int | None) -> list[int]:
        if budget.error is not None:
            costs, spent = "seconds", "losses"
            limit, least = budget.error, math.fsum(min(choice.losses) for choice in self.choices)
        elif budget.density is not None:
            costs, spent = "losses", "pairs"
            limit, least = budget.density, math.fsum(min(choice.pairs) for choice in self.choices)
        else:
            assert budget.speedup is not None
            costs, spent = "losses", "seconds"
            dense = math.fsum(choice.seconds[0] for choice in self.choices)
            limit = dense / max(budget.speedup, 1e-9)
            least = dense / math.fsum(min(choice.seconds) for choice in self.choices)
        items = [self._item(alike, costs, spent, only) for alike in self.together]
        found = solve(items, limit * (1 + ROUNDING))
        if found is None:
            best = replace(budget, **{name: least for name, value in vars(budget).items() if value is not None})
            raise UnreachableQuality(str(budget), str(best))
        return [place for alike, place in zip(self.together, found, strict=True) for _ in alike]

    def _item(self, alike: Sequence[int], costs: str, spent: str, only: int | None) -> Item:
        """What the options of some choices that are made together come to; the dense one alone outside one range."""
        choices = [self.choices[at] for at in alike]
        sums = (
            [math.fsum(values) for values in zip(*(getattr(choice, what) for choice in choices), strict=True)]
            for what in (costs, spent)
        )
        is_dense = only is not None and choices[0].range != only
        return Item(*(values[:1] if is_dense else values for values in sums))

    def _patterns(self, decision: Decision, wanted: Sequence[str] | None) -> list[Pattern]:
        known = self.evidence.sites[decision.site].candidates
        return [Dense(), *(parse_pattern(text) for text in known if wanted is None or text in wanted)]

    def _choices(self, number: int) -> Iterator[Choice]:
        decision, patterns = self.decisions[number], self.patterns[number]
        site, found = site_of(decision), self.evidence.sites[decision.site]
        layout = site.layout
        assert isinstance(layout, TokenLayout)
        kept = [found.candidates.index(str(pattern)) for pattern in patterns[1:]]
        share_of_pairs = site.batch * site.queries**2 / self.every
        seconds = [sparse_seconds(site, pattern, self.target) / site.heads for pattern in patterns]
        pairs = [density(pattern, layout) * share_of_pairs for pattern in patterns]
        for at, ((_, share, calls), gain) in enumerate(zip(self.levels, self.gains, strict=True)):
            weight = share * gain * self._sensitivity(found, calls, decision.site)
            losses = torch.nn.functional.pad(mean_over(found.error, calls)[kept] * weight, (0, 0, 1, 0)).T.tolist()
            recalls = torch.nn.functional.pad(mean_over(found.recall, calls)[kept], (0, 0, 1, 0), value=1.0).T.tolist()
            for head in range(site.heads):
                yield Choice(
                    number,
                    head,
                    at,
                    tuple(share * each for each in seconds),
                    tuple(share * each for each in pairs),
                    tuple(losses[head]),
                    tuple(recalls[head]),
                )

    def _sensitivity(self, found: SiteEvidence, calls: Sequence[int], name: str) -> float:
        """That of the range's calls, or of all where none of them was probed."""
        inside = float(mean_over(found.sensitivity, calls))
        sensitivity = inside if not math.isnan(inside) else float(found.sensitivity.nanmean())
        if math.isnan(sensitivity):
            raise BadEvidence(name, "its sensitivity was not measured: the recording was broken off")
        return sensitivity

    def _allocation(self, taken: Sequence[int], budget: Budget) -> Allocation:
        chosen = list(zip(self.choices, taken, strict=True))
        ends = [end for end, _, _ in self.levels]
        planned = dict[str, Decision]()
        for number, group in groupby(chosen, key=lambda pair: pair[0].site):
            decision, patterns = self.decisions[number], self.patterns[number]
            table = [[patterns[0]] * decision.heads for _ in ends]
            for choice, place in group:
                table[choice.range][choice.head] = patterns[place]
            planned[decision.site] = self._decided(decision, Rules.of(table, ends), budget)
        decisions = tuple(planned.get(decision.site, decision) for decision in self.evidence.plan.decisions)
        plan = replace(self.evidence.plan, decisions=decisions, target=self.target.name)
        return Allocation(
            plan.verify(),
            error=math.fsum(choice.losses[place] for choice, place in chosen),
            density=math.fsum(choice.pairs[place] for choice, place in chosen),
            seconds=math.fsum(choice.seconds[place] for choice, place in chosen),
        )

    def _decided(self, decision: Decision, rules: Rules, budget: Budget) -> Decision:
        asked = f" within {budget}" if any(value is not None for value in vars(budget).values()) else ""
        return replace(
            decision,
            pattern=str(rules),
            reason=f"chosen from evidence{asked}" if rules.patterns else f"evidence: no pattern is worth it{asked}",
            **costs_under(rules, site_of(decision), self.target),
        )


def _cheapest(choices: Sequence[Choice], recall: float) -> int:
    """The fastest option with which all of some heads keep so much softmax mass; of equals the one that keeps more."""
    options = range(len(choices[0].seconds))
    kept = [place for place in options if place == 0 or all(choice.recalls[place] >= recall for choice in choices)]
    return min(kept, key=lambda place: (choices[0].seconds[place], -sum(choice.recalls[place] for choice in choices)))
