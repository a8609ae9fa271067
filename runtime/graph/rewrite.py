"""Rewriting: the planned operator replaces each attention node with a sparse decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from planner.capture.call import Call
from planner.capture.trace import Capture
from planner.plan.noise_level import NoiseLevel
from planner.plan.plan import Plan
from planner.plan.site import MaskKind
from planner.provenance.find_noise_level import placeholder_of
from planner.runtime.attention.operator import OPTIONS, grouped_attention, mask_of_keys, mask_of_queries
from planner.runtime.eager.sdpa_mode import ARGUMENTS
from planner.stages import PlannedGraph


def rewrite(capture: Capture, planned: PlannedGraph, call: Call) -> int:
    """Replace sparse attention nodes in the captured graph of a call by planned operators; return how many."""
    graph, rewritten, plan = capture.graph.graph, 0, planned.plan
    noise = _noise(capture, plan, call)
    for node, decision, site in zip(capture.attention_nodes(), plan.decisions, planned.sites, strict=True):
        if not decision.is_sparse:
            continue
        arguments: dict[str, Any] = OPTIONS | dict(zip(ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)
        with graph.inserting_before(node):
            keys, queries = _masks(arguments["attn_mask"], site.mask_kind)
            operands = [{**arguments, "attn_mask": keys}[name] for name in ("query", "key", "value", *OPTIONS)]
            operands += [decision.layout, decision.pattern, *[noise] * decision.is_gated]
            shared = plan.kernel_patterns.get(decision.layout)
            options: dict[str, Any] = {} if shared is None else {"kernel_patterns": shared}
            planned_node = graph.call_function(grouped_attention, tuple(operands), options)
            planned_node.meta = dict(node.meta)
            if queries is not None:
                planned_node = _call(torch.where, queries, planned_node, 0.0)
                planned_node.meta = dict(node.meta)
        node.replace_all_uses_with(planned_node)
        graph.erase_node(node)
        rewritten += 1
    capture.graph.recompile()
    return rewritten


def _masks(mask: Node | None, kind: MaskKind | None) -> tuple[Node | None, Node | None]:
    """Add nodes for the mask of keys, and for the mask of queries where the mask is a product of both."""
    if mask is None or kind is None or mask.meta["val"].shape[-2] == 1:
        return mask, None
    return _call(mask_of_keys, mask), _call(mask_of_queries, mask) if kind == "both" else None


def _call(target: Callable[..., torch.Tensor], *args: Any) -> Node:
    """Add a node for a call, with the fake value of its result."""
    graph = next(arg.graph for arg in args if isinstance(arg, Node))
    node = graph.call_function(target, args)
    node.meta["val"] = target(*(arg.meta["val"] if isinstance(arg, Node) else arg for arg in args))
    return node


def _noise(capture: Capture, plan: Plan, call: Call) -> Node | None:
    """Add a node for the noise level, ahead of all operations, where a site is gated; None where none is."""
    if not any(decision.is_gated for decision in plan.decisions):
        return None
    level = NoiseLevel.parse(str(plan.noise))
    timestep = placeholder_of(capture, call, level.argument)
    first = next(node for node in capture.graph.graph.nodes if node.op != "placeholder")
    with capture.graph.graph.inserting_before(first):
        return _call(level.of, timestep)
