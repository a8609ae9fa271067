"""Candidates: the kernel configs worth trying for a problem, and the one that is chosen."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from planner.codegen.spec.body import BODIES
from planner.codegen.spec.config import KernelConfig
from planner.codegen.spec.feasibility import why_not
from planner.codegen.spec.problem import Problem
from planner.errors import NoKernel


def candidates(problem: Problem) -> Iterator[KernelConfig]:
    """Yield the configs that can serve a problem on its target, the one that should be fastest first."""
    return (config for config, reason in _tried(problem) if reason is None)


@lru_cache(maxsize=4096)
def choose_config(problem: Problem) -> KernelConfig:
    """Return the first of the candidates; raises NoKernel, with each body's reason against the last that it tried."""
    reasons = dict[str, str]()
    for config, reason in _tried(problem):
        if reason is None:
            return config
        reasons[config.body] = reason
    bodies = dict[str, list[str]]()
    for body, reason in reasons.items():
        bodies.setdefault(reason, []).append(body)
    found = "; ".join(f"{' and '.join(names)}: {reason}" for reason, names in bodies.items())
    raise NoKernel(f"{problem.pattern} on {problem.layout}", found or "no body has a candidate")


def _tried(problem: Problem) -> Iterator[tuple[KernelConfig, str | None]]:
    """Yield all configs that bodies offer, the fastest first, each with the reason against it."""
    for body in sorted(BODIES.values(), key=lambda body: body.order):
        if body.computes_means == problem.only_means:
            yield from ((config, why_not(config, problem)) for config in body.candidates(problem))
