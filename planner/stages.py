"""From one captured graph to its plan: the stages in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from planner.capture.call import Call
from planner.capture.trace import Capture
from planner.errors import PlanMismatch
from planner.plan.options import Options
from planner.plan.plan import Decision, Plan
from planner.plan.site import AttentionSite
from planner.plan.target import Target
from planner.provenance.find_noise_level import find_noise_level
from planner.provenance.find_sites import find_sites
from planner.provenance.propagate import Memory, Provenance, trace_provenance
from planner.provenance.rules.base import Shadow
from planner.search.cost import rest_of_step
from planner.search.decide import decide


@dataclass(frozen=True)
class PlannedGraph:
    """The plan of one graph: a decision for each attention node, in order; and the provenance of its outputs.

    sites: what was decided about, in the same order. guards: arguments whose values the plan depends on.
    """

    plan: Plan
    sites: tuple[AttentionSite, ...]
    outputs: tuple[Shadow, ...]
    guards: frozenset[str]


def plan_capture(
    options: Options,
    target: Target | None,
    capture: Capture,
    call: Call,
    memory: Memory | None = None,
    model: str = "",
    at_any_size: bool = False,
) -> PlannedGraph:
    """Plan one captured graph of a call, for a target or for where its attention runs.

    at_any_size: as in decide. Raises what decide, find_sites and find_noise_level raise.
    """
    target = target or Target.of_device(capture.device)
    provenance = trace_provenance(capture, call, memory)
    sites = find_sites(capture, provenance, call, options.layout)
    decisions = decide(sites, options, target, at_any_size)
    gated = any(decision.is_gated for decision in decisions)
    noise = str(find_noise_level(capture, call, options.noise)) if gated else None
    flops, seconds = rest_of_step(capture.graph.graph.nodes, target)
    plan = Plan(model, call.signature(), target.name, options, decisions, noise, flops, seconds)
    return _planned(plan.verify(), sites, capture, provenance)


def plan_dense(options: Options, capture: Capture, call: Call, model: str) -> tuple[Plan, frozenset[str]]:
    """Plan every site of a captured graph dense, with the argument that tells the noise level, for recording evidence.

    Returns the plan and the names of the sites whose candidates can be scored: those that can take a pattern and whose
    attention is not causal. Raises what find_sites and find_noise_level raise.
    """
    planned = plan_capture(options, None, capture, call, model=model)
    scored = frozenset(site.name for site in planned.sites if site.why_not() is None and not site.is_causal)
    return replace(planned.plan, noise=str(find_noise_level(capture, call, options.noise))), scored


def follow_plan(
    plan: Plan, capture: Capture, call: Call, memory: Memory | None = None, model: str = ""
) -> PlannedGraph:
    """Take the decisions for a captured graph from a plan made before; raises PlanMismatch."""
    if plan.model != model:
        raise PlanMismatch(f"a {plan.model}", f"a {model}")
    if plan.inputs != call.signature():
        raise PlanMismatch(f"inputs {plan.inputs}", call.signature())
    provenance = trace_provenance(capture, call, memory)
    planned = {decision.site: decision for decision in plan.decisions}
    decisions, sites = list[Decision](), find_sites(capture, provenance, call, plan.options.layout)
    for site in sites:
        decision = planned.get(site.name)
        if decision is None or decision.shape != site.shape:
            raise PlanMismatch(f"{decision.shape if decision else 'no site'} at {site.name}", f"{site.shape}")
        if decision.is_sparse and decision.layout != str(site.layout):
            raise PlanMismatch(f'"{decision.layout}" at {site.name}', f'"{site.layout}"')
        decisions.append(decision)
    return _planned(replace(plan, decisions=tuple(decisions)), sites, capture, provenance)


def _planned(plan: Plan, sites: Sequence[AttentionSite], capture: Capture, provenance: Provenance) -> PlannedGraph:
    output = next(iter(reversed(capture.graph.graph.nodes)))
    return PlannedGraph(plan, tuple(sites), _flat(provenance.of(output.args[0])), frozenset(provenance.guards))


def _flat(shadows: object) -> tuple[Shadow, ...]:
    if isinstance(shadows, list | tuple):
        return tuple(shadow for item in shadows for shadow in _flat(item))
    return (shadows if isinstance(shadows, torch.Tensor) else None,)
