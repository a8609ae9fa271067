"""Transfer: a plan for one size of a model, carried over to another, and said to be extrapolated.

Groups are counted in tokens and windows in groups, so rules mean something at any size. What they keep there was not
measured: evidence and certificates are left behind.
"""

from __future__ import annotations

from dataclasses import replace

from planner.patterns.layout import TokenLayout
from planner.patterns.rules import Rules
from planner.plan.plan import Decision, Plan
from planner.plan.target import Target
from planner.search.cost import costs_under
from planner.search.decide import site_of


def carry_over(plan: Plan, dense: Plan) -> Plan:
    """Carry the rules of a plan over to a plan of another size that leaves every site dense.

    A site takes the rules of the site of its name if its heads are as many, its layout has the same segments and axes,
    and the groups fit its grid; the reason says what was extrapolated, or why it stays dense.
    """
    target, known = Target.named(plan.target), {decision.site: decision for decision in plan.decisions}
    decisions = tuple(_carried(known.get(decision.site), decision, target) for decision in dense.decisions)
    made = replace(
        dense, target=plan.target, options=plan.options, decisions=decisions, noise=plan.noise or dense.noise
    )
    return made.verify()


def _carried(source: Decision | None, decision: Decision, target: Target) -> Decision:
    if source is None:
        return replace(decision, reason="the plan that this one was carried over from has no such site")
    if not source.is_sparse:
        return replace(decision, reason=source.reason)
    (rules, old), (_, new) = source.parsed(), decision.parsed()
    assert old is not None
    fault = _why_not(rules, source, decision, old, new)
    if fault is not None or new is None:
        return replace(decision, reason=f"not carried over from {source.layout}: {fault}")
    return replace(
        decision,
        pattern=str(rules),
        reason=f"extrapolated from {source.layout}: {source.reason}",
        **costs_under(rules, site_of(decision), target),
    )


def _why_not(
    rules: Rules, source: Decision, decision: Decision, old: TokenLayout, new: TokenLayout | None
) -> str | None:
    if new is None:
        return "the layout is unknown here"
    if source.heads != decision.heads:
        return f"{decision.heads} heads instead of {source.heads}"
    if _kinds(old) != _kinds(new) or decision.queries != decision.keys:
        return f"{new} has other segments or axes"
    for pattern in rules.patterns:
        if any(g > n for g, n in zip(pattern.group, new.grid.sizes, strict=True)):
            return f"the groups of {pattern} do not fit {new.grid}"
    return None


def _kinds(layout: TokenLayout) -> list[tuple[str, ...]]:
    """List the names of each segment and its axes, without sizes."""
    return [(segment.name, *(axis for axis, _ in getattr(segment, "axes", ()))) for segment in layout.segments]
