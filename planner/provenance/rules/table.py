"""Rules by name: how one operation moves provenance, and how operations of one kind do.

A rule takes the call of an operation, with shadows in place of tensors, and returns the shadow of the result: None for
one that is made of no input's tokens. It raises Unsupported for a case that it does not know; then, as for an operation
that has no rule, the result has unknown provenance, and the operation is named where a layout is lost because of it.

A new rule is a file beside this one, which is found there, or a plug-in's::

    from planner.provenance.rules.base import OpCall, Shadow, contract
    from planner.provenance.rules.table import RULES

    @RULES.register("mylib::mix_channels")  # of an ATen operation the bare name, such as "linear"
    def mix_channels(call: OpCall) -> Shadow:
        return contract(call.first, [-1]).expand(call.shape)

An operation that has no rule of its own follows that of its kind, so that one which only moves elements needs no more
than an entry of its kind in ``planner.capture.ops.OPS``.
"""

from __future__ import annotations

from collections.abc import Callable

from planner.provenance.rules.base import OpCall, ShadowTree
from planner.registry import Registry

Rule = Callable[[OpCall], ShadowTree]

RULES: Registry[Rule] = Registry("rule of provenance", builtin=["planner.provenance.rules"])
"""Rules by the name of an operation, as ``planner.capture.ops.op_name`` spells it."""

KIND_RULES: Registry[Rule] = Registry(
    "rule of provenance for a kind of operation", builtin=["planner.provenance.rules"]
)
"""Rules by the kind of an operation, for those that have none of their own."""
