"""Rules: which pattern a site's heads follow, at which noise levels.

Most sites follow one pattern, and its spelling is that of the rules. Where heads or noise levels differ, rules are
separated by semicolons, and every head has exactly one at every level::

    crisscross{axes=lines,group=16x16}[noise=0:0.8]; dense[noise=0.8:1]
    neighborhood{radius=1,edge=clamp,group=8x8}[heads=0-2,5]; dense[heads=3-4]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

from planner.errors import BadSpelling, MalformedValue, clip
from planner.patterns.base import Pattern
from planner.patterns.dense import Dense
from planner.patterns.spelling import parse_pattern

EXAMPLE = "crisscross{axes=lines,group=16x16}[heads=0-2,5,noise=0:0.8]; dense[heads=3-4]; …"
SEPARATOR = "; "
"""What stands between rules, and between patterns."""

MAX_HEADS, MAX_RANGES = 4096, 64
"""Heads of a site, and ranges of noise levels: work on rules grows with their product."""

DIGITS = 6
"""Decimals of noise levels."""


@dataclass(frozen=True)
class Rule:
    """A pattern, its heads (none named: all), and the noise levels where it applies: above < level <= up_to."""

    pattern: Pattern
    heads: tuple[int, ...] = ()
    above: float = 0.0
    up_to: float = 1.0

    def holds_at(self, level: float) -> bool:
        """Tell whether the rule applies at a noise level; levels beyond 0 and 1 count as these."""
        return (self.above < level or self.above == 0) and (level <= self.up_to or self.up_to == 1)

    def __str__(self) -> str:
        heads = [f"heads={_spell_heads(self.heads)}"] if self.heads else []
        noise = [f"noise={_spell(self.above)}:{_spell(self.up_to)}"] if (self.above, self.up_to) != (0, 1) else []
        return f"{self.pattern}[{','.join(heads + noise)}]" if heads or noise else str(self.pattern)


@dataclass(frozen=True)
class Rules:
    """All rules of a site, sorted; ``Rules.parse(str(rules)) == rules``."""

    rules: tuple[Rule, ...]

    @staticmethod
    def uniform(pattern: Pattern, sparse_below: float = 1.0) -> Rules:
        """Return rules of one pattern for all heads at noise levels up to one, and dense attention above it."""
        level = max(round(sparse_below, DIGITS), 10**-DIGITS)
        if level == 1 or isinstance(pattern, Dense):
            return Rules((Rule(pattern),))
        return Rules((Rule(pattern, up_to=level), Rule(Dense(), above=level)))

    @staticmethod
    def of(chosen: Sequence[Sequence[Pattern]], levels: Sequence[float]) -> Rules:
        """Return the rules of a pattern for each range of noise levels and each head.

        levels: the ends of the ranges, ascending, the last of them 1. Neighbouring ranges in which a head keeps its
        pattern are one, and heads that follow a pattern over the same levels share a rule.
        """
        shared = dict[tuple[Pattern, float, float], list[int]]()
        for head in range(len(chosen[0])):
            above = 0.0
            for number, level in enumerate(levels):
                pattern = chosen[number][head]
                if number + 1 == len(levels) or chosen[number + 1][head] != pattern:
                    up_to = round(level, DIGITS)
                    shared.setdefault((pattern, above, up_to), []).append(head)
                    above = up_to
        rules = (
            Rule(pattern, () if len(heads) == len(chosen[0]) else tuple(heads), above, up_to)
            for (pattern, above, up_to), heads in shared.items()
        )
        return Rules(tuple(sorted(rules, key=_order)))

    @staticmethod
    @lru_cache(maxsize=4096)
    def parse(text: str) -> Rules:
        """Read a spelling; raises BadSpelling, MalformedValue and UnknownName."""
        rules, entries = list[Rule](), 0
        for part in text.split(";"):
            rules.append(_parse_rule(part.strip(), text))
            entries += max(1, len(rules[-1].heads))
            if entries > MAX_HEADS * MAX_RANGES:
                raise BadSpelling("rule", text, f"its rules name more than {MAX_HEADS * MAX_RANGES} heads", EXAMPLE)
        return Rules(tuple(rules))

    @property
    def pattern(self) -> Pattern | None:
        """The one pattern that all heads follow at all levels; None where there are several."""
        return self.rules[0].pattern if len(self.rules) == 1 else None

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """The sparse patterns among them, each once."""
        return tuple(dict.fromkeys(rule.pattern for rule in self.rules if not isinstance(rule.pattern, Dense)))

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """The noise levels at which something changes."""
        return tuple(sorted({rule.up_to for rule in self.rules} - {1.0}))

    def at(self, level: float) -> list[Rule]:
        """Return the rules that apply at a noise level."""
        return [rule for rule in self.rules if rule.holds_at(level)]

    def shares(self, heads: int) -> list[tuple[Rule, float]]:
        """Return each rule with its share of the heads times its share of the noise levels."""
        return [(rule, len(rule.heads or range(heads)) / heads * (rule.up_to - rule.above)) for rule in self.rules]

    def verify(self, heads: int) -> Rules:
        """Return the rules; raises MalformedValue unless every head has exactly one pattern at every noise level."""
        if not 1 <= heads <= MAX_HEADS:
            raise MalformedValue(str(self), f"it is for {heads} heads", f"Plan a site of 1 to {MAX_HEADS} heads.")
        if len(self.levels) >= MAX_RANGES:
            fault = f"it has {len(self.levels) + 1} ranges of noise levels"
            raise MalformedValue(str(self), fault, f"Use {MAX_RANGES} at most.")
        edges = (0.0, *self.levels, 1.0)
        for above, up_to in pairwise(edges):
            found = sorted(head for rule in self.at((above + up_to) / 2) for head in rule.heads or range(heads))
            if found != list(range(heads)):
                served = f"heads {_spell_heads(found) or 'none'} have a pattern, of {heads}"
                fault = f"at noise levels from {_spell(above)} to {_spell(up_to)} {served}"
                raise MalformedValue(str(self), fault, f"Give every head one, like {EXAMPLE!r}.")
        for rule in self.rules:
            rule.pattern.verify()
            if not 0 <= rule.above < rule.up_to <= 1:
                fault = f"noise={_spell(rule.above)}:{_spell(rule.up_to)} is no range within 0 and 1"
                raise MalformedValue(str(self), fault, f"Write it like {EXAMPLE!r}.")
        return self

    def __str__(self) -> str:
        return SEPARATOR.join(map(str, self.rules))


def _spell(level: float) -> str:
    return f"{level:.{DIGITS}f}".rstrip("0").rstrip(".")


def _order(rule: Rule) -> tuple[object, ...]:
    return rule.heads[:1], rule.above, str(rule.pattern)


def _parse_rule(part: str, text: str) -> Rule:
    match = re.fullmatch(
        r"([^\[\]]+)(?:\[(?:heads=([\d,\-]+?))?,?(?:noise=(\d(?:\.\d{1,9})?):(\d(?:\.\d{1,9})?))?\])?", part
    )
    if match is None:
        raise BadSpelling("rule", text, f"{clip(part)!r} is no pattern with heads and noise levels", EXAMPLE)
    above, up_to = (float(match[3]), float(match[4])) if match[3] else (0.0, 1.0)
    return Rule(parse_pattern(match[1]), _parse_heads(match[2], text) if match[2] else (), above, up_to)


def _parse_heads(spelling: str, text: str) -> tuple[int, ...]:
    heads = list[int]()
    for part in spelling.split(","):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < MAX_HEADS:
            raise BadSpelling("rule", text, f"{part!r} is no head or range of heads", EXAMPLE)
        heads += range(first, last + 1)
    return tuple(heads)


def _spell_heads(heads: Sequence[int]) -> str:
    """Return ``0-2,5`` for 0, 1, 2 and 5."""
    runs = list[list[int]]()
    for head in heads:
        if runs and runs[-1][-1] + 1 == head:
            runs[-1].append(head)
        else:
            runs.append([head])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
