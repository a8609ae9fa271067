"""Attention under context parallelism: the order of the tokens on each device, and the device's share of a plan.

Ulysses (arXiv 2309.14509) gives each of P devices a part of every tensor's tokens, and for attention all tokens of its
share of the heads. The tokens come in the devices' order. A sequence that joins several tensors, text and image say,
has the first parts of all tensors first, then the second parts, and so on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from planner.errors import UnplannedParallelism
from planner.patterns.layout import TokenLayout
from planner.patterns.rules import Rules
from planner.plan.plan import Decision


@dataclass(frozen=True)
class Parallelism:
    """The division of a model's tokens and heads among ``degree`` devices, of which this one is number ``rank``.

    split: names of the tensors whose tokens are split, each separately.
    """

    degree: int
    rank: int
    split: frozenset[str]

    @staticmethod
    def of(model: torch.nn.Module) -> Parallelism | None:
        """Read what diffusers' enable_parallelism set, None without it; raises UnplannedParallelism."""
        config = getattr(getattr(model, "_parallel_config", None), "context_parallel_config", None)
        if config is None:
            return None
        if config.ring_degree > 1:
            raise UnplannedParallelism(
                f"ring_degree={config.ring_degree}",
                "Ring attention brings in the keys part by part, and a group's keys lie in several of them",
            )
        if config.ulysses_anything:
            raise UnplannedParallelism("ulysses_anything=True", "How many tokens each device has is not known ahead")
        plans: Mapping[str, Any] = getattr(model, "_cp_plan", None) or {}
        names = (name for plan in plans.values() if isinstance(plan, Mapping) for name in _split_arguments(plan))
        return Parallelism(config.ulysses_degree, config._ulysses_local_rank, frozenset(names))

    def why_not(self, decision: Decision) -> str | None:
        """Say why a sparse decision cannot be followed on several devices, None if it can."""
        if decision.heads % self.degree or decision.kv_heads % self.degree:
            return f"{decision.heads} heads do not divide among {self.degree} devices"
        segments = TokenLayout.parse(decision.layout).segments
        if len(segments) == 1:
            return None
        for segment in segments:
            if segment.name.partition(".")[0] not in self.split:
                return f"the order in which {self.degree} devices have the tokens of {decision.layout} is not known"
            if segment.tokens % self.degree:
                return f"{segment} does not divide among {self.degree} devices"
        return None

    def share(self, decision: Decision) -> Decision:
        """Return a decision for this device's heads only."""
        return _share(decision, self.degree, self.rank)

    def order(self, layout: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the position that each token of a layout has on a device, and the inverse; (tokens,) int64 both.

        Return None where the device has the tokens in the layout's order.
        """
        return _order(layout, self.degree, device)


@lru_cache(maxsize=4096)
def _share(decision: Decision, degree: int, rank: int) -> Decision:
    first, heads = rank * decision.heads // degree, decision.heads // degree
    own = range(first, first + heads)
    rules = [
        replace(rule, heads=tuple(head - first for head in rule.heads if head in own))
        for rule in decision.rules.rules
        if not rule.heads or not set(own).isdisjoint(rule.heads)
    ]
    rules = [replace(rule, heads=()) if len(rule.heads) == heads else rule for rule in rules]
    return replace(decision, heads=heads, kv_heads=decision.kv_heads // degree, pattern=str(Rules(tuple(rules))))


@lru_cache(maxsize=64)
def _order(layout: str, degree: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
    sizes = [segment.tokens // degree for segment in TokenLayout.parse(layout).segments]
    if len(sizes) == 1:
        return None
    positions = torch.arange(degree * sum(sizes)).view(degree, sum(sizes))
    order = torch.cat([part.flatten() for part in positions.split(sizes, dim=1)]).to(device)
    return order, order.argsort()


def _split_arguments(plan: Mapping[Any, Any]) -> Iterator[str]:
    """Name the arguments of a module that a plan of diffusers splits."""
    return (name for name, entry in plan.items() if isinstance(name, str) and not getattr(entry, "split_output", True))
