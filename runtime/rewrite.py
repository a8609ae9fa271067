"""Rewriting: each attention node with a sparse decision becomes the planned operator."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from planner.capture import Call, Capture
from planner.noise import NoiseLevel, placeholder_of
from planner.plan import Plan
from runtime.operator import grouped_attention

_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
_DEFAULTS: dict[str, Any] = {"attn_mask": None, "is_causal": False, "scale": None, "enable_gqa": False}


def rewrite(capture: Capture, plan: Plan, call: Call) -> int:
    """Put the plan's operators into the captured graph of a call, in place; return how many."""
    graph, rewritten = capture.graph.graph, 0
    noise = _noise(capture, plan, call)
    for node, decision in zip(capture.attention_nodes(), plan.decisions, strict=True):
        if not decision.is_sparse:
            continue
        given = _DEFAULTS | dict(zip(_ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)
        order = ("query", "key", "value", "attn_mask", "is_causal", "scale", "enable_gqa")
        arguments = (*(given[name] for name in order), decision.layout, decision.pattern)
        if decision.is_gated:
            arguments = (*arguments, noise)
        with graph.inserting_before(node):
            planned = graph.call_function(grouped_attention, arguments)
        planned.meta = dict(node.meta)
        node.replace_all_uses_with(planned)
        graph.erase_node(node)
        rewritten += 1
    capture.graph.recompile()
    return rewritten


def _noise(capture: Capture, plan: Plan, call: Call) -> Node | None:
    """A node for the noise level, ahead of everything, where a site is gated."""
    if not any(decision.is_gated for decision in plan.decisions):
        return None
    level = NoiseLevel.parse(str(plan.noise))
    timestep = placeholder_of(capture, call, level.argument)
    first = next(node for node in capture.graph.graph.nodes if node.op != "placeholder")
    with capture.graph.graph.inserting_before(first):
        made = capture.graph.graph.call_function(level.of, (timestep,))
    made.meta["val"] = level.of(timestep.meta["val"])
    return made
