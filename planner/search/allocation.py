"""Allocation: from evidence and a budget to what each head does at each noise level.

Every head of every site, in every range of noise levels, takes one candidate. What that costs is its predicted time,
what it loses is its predicted share in the error of the model's output: the error of the head's output times the
site's sensitivity. A multiple-choice knapsack (planner.search.knapsack) takes the least of one within a budget of
the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from planner.errors import BadOption, UnknownName, UnreachableQuality
from planner.patterns.base import Pattern
from planner.patterns.dense import Dense
from planner.patterns.density import density
from planner.patterns.layout import TokenLayout
from planner.patterns.rules import Rules
from planner.patterns.spelling import parse_pattern
from planner.plan.evidence import Evidence
from planner.plan.plan import Decision, Plan
from planner.plan.target import Target
from planner.search.budget import Budget
from planner.search.choices import Choice, choices_of
from planner.search.cost import costs_under, dense_seconds, sparse_seconds
from planner.search.decide import site_of
from planner.search.knapsack import Item, solve

RANGES = 3
"""Ranges of noise levels, with as many steps in each."""

ROUNDING = 1e-8
"""Sums of shares miss their whole by less: the least that can be reached meets a budget of exactly as much."""


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
        self.patterns = [self._options(decision, patterns) for decision in self.decisions]
        self.choices = self._choices()
        self.joint = _joint(self.choices, by_head)

    def within(self, budget: Budget, only: int | None = None) -> Allocation:
        """Return the plan that costs least within an error or a recall, or loses least within a density or a speed-up.

        only: a range of noise levels, by its number; everything is dense in the others. Raises BadOption, and
        UnreachableQuality with the best that can be reached.
        """
        budget.verify()
        if budget.recall is not None:
            options = [_cheapest(choices, budget.recall) for choices in self.joint]
        else:
            options = self._solve(budget, only)
        of_each = [option for choices, option in zip(self.joint, options, strict=True) for _ in choices]
        return self._allocation(of_each, budget)

    def uniform(self, pattern: str) -> Allocation:
        """Return the plan in which everything follows one pattern of the evidence; raises UnknownName."""
        wanted = parse_pattern(pattern)
        for patterns in self.patterns:
            if wanted not in patterns:
                raise UnknownName("pattern with evidence", pattern, map(str, patterns))
        return self._allocation([self.patterns[choice.site].index(wanted) for choice in self.choices], Budget())

    def predicted(self, plan: Plan) -> Allocation:
        """Return what another plan of the same sites is predicted to do.

        Its error is not a number where a pattern has no evidence.
        """
        rules = {decision.site: decision.rules for decision in plan.decisions}
        error, pairs, seconds = list[float](), list[float](), list[float]()
        for choice in self.choices:
            decision, patterns = self.decisions[choice.site], self.patterns[choice.site]
            in_range = rules[decision.site].at(self.levels[choice.range][0])
            pattern = next(rule.pattern for rule in in_range if choice.head in (rule.heads or range(decision.heads)))
            site = site_of(decision)
            assert isinstance(site.layout, TokenLayout)
            error.append(choice.losses[patterns.index(pattern)] if pattern in patterns else math.nan)
            pairs.append(choice.pairs[0] * density(pattern, site.layout))
            share = sparse_seconds(site, pattern, self.target) / dense_seconds(site, self.target)
            seconds.append(choice.seconds[0] * share)
        return Allocation(plan, sum(error), math.fsum(pairs), math.fsum(seconds))

    def _options(self, decision: Decision, spellings: Sequence[str] | None) -> list[Pattern]:
        """Return the patterns that a site can follow, dense attention first."""
        candidates = self.evidence.sites[decision.site].candidates
        return [Dense(), *(parse_pattern(text) for text in candidates if spellings is None or text in spellings)]

    def _choices(self) -> list[Choice]:
        """Return the choices, site by site, range by range and head by head; raises BadEvidence."""
        every_pair = sum(each.heads * each.batch * each.queries**2 for each in self.decisions)
        ranges = [(share, calls, gain) for (_, share, calls), gain in zip(self.levels, self.gains, strict=True)]
        choices = list[Choice]()
        for number, decision in enumerate(self.decisions):
            site, evidence = site_of(decision), self.evidence.sites[decision.site]
            choices += choices_of(number, site, self.patterns[number], evidence, ranges, self.target, every_pair)
        return choices

    def _solve(self, budget: Budget, only: int | None) -> list[int]:
        """Return the option of each joint choice; raises UnreachableQuality."""
        goal = _goal(budget, self.choices)
        items = [_item(choices, goal, only) for choices in self.joint]
        options = solve(items, goal.limit)
        if options is None:
            options = solve(items, goal.limit * (1 + ROUNDING))
        if options is None:
            best = replace(budget, **{name: goal.best for name, bound in vars(budget).items() if bound is not None})
            raise UnreachableQuality(str(budget), str(best))
        return options

    def _allocation(self, options: Sequence[int], budget: Budget) -> Allocation:
        """Return the plan of an option for each choice."""
        chosen = list(zip(self.choices, options, strict=True))
        ends = [end for end, _, _ in self.levels]
        decisions = dict[str, Decision]()
        for number, of_site in groupby(chosen, key=lambda pair: pair[0].site):
            decision, patterns = self.decisions[number], self.patterns[number]
            table = [[patterns[0]] * decision.heads for _ in ends]
            for choice, option in of_site:
                table[choice.range][choice.head] = patterns[option]
            decisions[decision.site] = self._decision(decision, Rules.of(table, ends), budget)
        dense = self.evidence.plan
        every = tuple(decisions.get(decision.site, decision) for decision in dense.decisions)
        return Allocation(
            replace(dense, decisions=every, target=self.target.name).verify(),
            error=math.fsum(choice.losses[option] for choice, option in chosen),
            density=math.fsum(choice.pairs[option] for choice, option in chosen),
            seconds=math.fsum(choice.seconds[option] for choice, option in chosen),
        )

    def _decision(self, decision: Decision, rules: Rules, budget: Budget) -> Decision:
        within = f" within {budget}" if budget != Budget() else ""
        return replace(
            decision,
            pattern=str(rules),
            reason=f"chosen from evidence{within}" if rules.patterns else f"evidence: no pattern is worth it{within}",
            **costs_under(rules, site_of(decision), self.target),
        )


@dataclass(frozen=True)
class _Goal:
    """What a budget is to the knapsack.

    least, bounded: the field of choices whose sum is to be least, and the one whose sum keeps to the limit. best: the
    tightest budget that can be kept.
    """

    least: str
    bounded: str
    limit: float
    best: float


def _goal(budget: Budget, choices: Sequence[Choice]) -> _Goal:
    if budget.error is not None:
        return _Goal("seconds", "losses", budget.error, math.fsum(min(choice.losses) for choice in choices))
    if budget.density is not None:
        return _Goal("losses", "pairs", budget.density, math.fsum(min(choice.pairs) for choice in choices))
    assert budget.speedup is not None
    dense = math.fsum(choice.seconds[0] for choice in choices)
    fastest = math.fsum(min(choice.seconds) for choice in choices)
    return _Goal("losses", "seconds", dense / max(budget.speedup, 1e-9), dense / fastest)


def _joint(choices: Sequence[Choice], by_head: bool) -> list[list[Choice]]:
    """Return the choices, those together that take the same option: each alone, or all heads of a site in a range."""
    if by_head:
        return [[choice] for choice in choices]
    return [list(heads) for _, heads in groupby(choices, key=lambda choice: (choice.site, choice.range))]


def _item(choices: Sequence[Choice], goal: _Goal, only: int | None) -> Item:
    """Return what the options of joint choices come to; the dense one alone outside one range."""
    costs, losses = (
        [math.fsum(of_heads) for of_heads in zip(*(getattr(choice, field) for choice in choices), strict=True)]
        for field in (goal.least, goal.bounded)
    )
    is_dense = only is not None and choices[0].range != only
    return Item(costs[:1], losses[:1]) if is_dense else Item(costs, losses)


def _cheapest(choices: Sequence[Choice], recall: float) -> int:
    """Return the fastest option with which all of some heads keep a recall; of equals the one that keeps more."""
    options = range(len(choices[0].seconds))
    kept = [option for option in options if option == 0 or all(each.recalls[option] >= recall for each in choices)]
    return min(kept, key=lambda option: (choices[0].seconds[option], -sum(each.recalls[option] for each in choices)))
