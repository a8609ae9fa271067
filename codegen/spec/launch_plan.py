"""Launches: the kernels that a site's rules need, few, and which heads each of them serves at which noise levels.

Patterns whose query tiles can be the same boxes share a kernel, and dense attention joins any: it reads everything with
the tiles that it is given. So heads and noise levels that differ do not multiply launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from planner.codegen.spec.candidates import choose_config
from planner.codegen.spec.feasibility import why_not
from planner.codegen.spec.head_table import HeadTable, RoutedHeads, make_head_table, of_batch
from planner.codegen.spec.kernel_spec import KernelSpec
from planner.codegen.spec.problem import MAX_PATTERNS, Problem
from planner.codegen.tiling.group_means import kind_of_groups
from planner.patterns.base import Pattern
from planner.patterns.dense import Dense
from planner.patterns.rules import SEPARATOR, Rules
from planner.patterns.spelling import parse_pattern


@dataclass(frozen=True, eq=False)
class HeadRouting:
    """The heads that a kernel serves: levels part the ranges of noise, each of which has heads of its own.

    A routing is made once and known by its identity, so that a launch need not look at its heads.
    """

    levels: tuple[float, ...]
    routed: tuple[RoutedHeads, ...]

    @staticmethod
    def in_turn(problem: Problem) -> HeadRouting:
        """Return a routing of all heads to the patterns in turn."""
        heads = {head: head % len(problem.patterns) for head in range(problem.heads)}
        return HeadRouting((), (of_batch(heads, problem.batch, problem.heads),))

    def table(self, spec: KernelSpec) -> HeadTable:
        """Make the head table that a kernel reads."""
        return make_head_table(spec, self.levels, self.routed)

    def means(self, problem: Problem, kind: str) -> HeadRouting:
        """Return the routing of the heads of keys whose means over one kind of groups the served heads read."""
        per_kv = problem.heads // problem.kv_heads
        reads = [pattern.pooled and kind_of_groups(pattern) == kind for pattern in problem.patterns]
        routed = [sorted({head // per_kv for head, which in heads if reads[which]}) for heads in self.routed]
        return HeadRouting(self.levels, tuple(tuple((head, 0) for head in heads) for heads in routed))


@dataclass(frozen=True)
class Launch:
    """A kernel, and the heads that it serves; None: all of them, always."""

    problem: Problem
    routing: HeadRouting | None = None

    @property
    def problems(self) -> list[Problem]:
        """What the launch asks of kernels: attention, and before it the means that are read."""
        return [*self.problem.means_read.values(), self.problem]


@lru_cache(maxsize=1024)
def launches(site: Problem, rules: Rules, kernel_patterns: str = "") -> tuple[Launch, ...]:
    """List the launches of a site under rules.

    site: its problem, with dense in place of a pattern. kernel_patterns: the patterns that kernels are made for, so
    that sites of other rules have the same kernels; those of the site's own rules by default. Raises NoKernel, and what
    ``Problem.verify`` raises.
    """
    if len(rules.rules) == 1 or not rules.patterns:
        pattern = rules.rules[0].pattern
        layout = f"n:{site.queries}" if isinstance(pattern, Dense) else site.layout
        return (Launch(replace(site, layout=layout, pattern=str(pattern)).verify()),)
    known = sorted({*map(str, rules.patterns), *filter(None, kernel_patterns.split(SEPARATOR))})
    used = [kernel for kernel in _kernels(site, tuple(known)) if any(each in rules.patterns for each in kernel)]
    # Dense attention is within every kernel; the first that there is serves it.
    return tuple(_launch(site, rules, kernel, serves_dense=kernel is used[0]) for kernel in used)


@lru_cache(maxsize=1024)
def _kernels(site: Problem, patterns: tuple[str, ...]) -> tuple[tuple[Pattern, ...], ...]:
    """Divide patterns among as few kernels as their order allows."""
    shared = list[list[Pattern]]()
    for pattern in map(parse_pattern, patterns):
        alike = next((kernel for kernel in shared if _share_tiles(site, [*kernel, pattern])), None)
        if alike is None:
            shared.append([pattern])
        else:
            alike.append(pattern)
    return tuple(map(tuple, shared))


def _share_tiles(site: Problem, patterns: Sequence[Pattern]) -> bool:
    """Tell whether one kernel can serve patterns as fast as kernels of their own would."""
    if len(patterns) >= MAX_PATTERNS or len({pattern.front_pad for pattern in patterns}) > 1:
        return False
    configs = [choose_config(_problem(site, [pattern])) for pattern in patterns]
    tiles = {(config.body, config.block_m) for config in configs}
    return len(tiles) == 1 and why_not(configs[0], _problem(site, patterns)) is None


def _launch(site: Problem, rules: Rules, kernel: Sequence[Pattern], serves_dense: bool) -> Launch:
    routed, patterns = list[RoutedHeads](), [*kernel, Dense()]
    mine = patterns if serves_dense else kernel
    for above, up_to in pairwise((0.0, *rules.levels, 1.0)):
        heads = {
            head: patterns.index(rule.pattern)
            for rule in rules.at((above + up_to) / 2)
            if rule.pattern in mine
            for head in rule.heads or range(site.heads)
        }
        routed.append(of_batch(heads, site.batch, site.heads))
    return Launch(_problem(site, patterns), HeadRouting(rules.levels, tuple(routed)))


def _problem(site: Problem, patterns: Sequence[Pattern]) -> Problem:
    return replace(site, pattern=SEPARATOR.join(map(str, patterns)), has_head_table=True).verify()
