"""Rewriting: each attention node with a sparse decision becomes the planned operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planner.capture import Capture
from planner.plan import Decision
from runtime.operator import grouped_attention

_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
_DEFAULTS: dict[str, Any] = {"attn_mask": None, "is_causal": False, "scale": None, "enable_gqa": False}


def rewrite(capture: Capture, decisions: Sequence[Decision]) -> int:
    """Put the plan's operators into the captured graph, in place; return how many."""
    graph, rewritten = capture.graph.graph, 0
    for node, decision in zip(capture.attention_nodes(), decisions, strict=True):
        if not decision.is_sparse:
            continue
        given = _DEFAULTS | dict(zip(_ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)
        order = ("query", "key", "value", "attn_mask", "is_causal", "scale", "enable_gqa")
        arguments = (*(given[name] for name in order), decision.layout, decision.pattern)
        with graph.inserting_before(node):
            planned = graph.call_function(grouped_attention, arguments)
        planned.meta = dict(node.meta)
        node.replace_all_uses_with(planned)
        graph.erase_node(node)
        rewritten += 1
    capture.graph.recompile()
    return rewritten
