"""Hoisting: tokens are brought into group order once, not around every attention.

Attention by contiguous runs (planner.runtime.attention.cpu) wants its tokens stored group by group. A permutation P of
tokens can be moved through an operation f that commutes with it, f(P x) = P f(x): one that treats tokens alike and does
not mix them. We walk a captured graph from its planned attention on, keep values *stored* (as P x) as long as a rule
proves that the operation commutes, and permute where one does not: what comes out of it is then as it was. Every value
is permuted at most once each way, so what a layer needs again (position tables, a residual stream) costs nothing in the
next layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from planner.capture.ops import changed_by, is_alias
from planner.capture.trace import Capture, module_path
from planner.patterns.base import Pattern
from planner.patterns.layout import TokenLayout
from planner.patterns.rules import Rules
from planner.plan.plan import Plan
from planner.runtime.attention.gather_plan import nest_of, order_of, runs_of, spell_nest
from planner.runtime.attention.operator import grouped_attention
from planner.runtime.graph.equivariance import Proof, State, Stored, attention, prove

AT_A_SITE = 4
"""Permutations at a site that is left as it was: of queries, keys, values and output."""


@dataclass(frozen=True)
class Hoisting:
    """What hoisting did to a graph: how often tokens are permuted in a call, and were, and where.

    left: for each module that something is permuted in, how often.
    """

    before: int
    after: int
    left: Mapping[str, int]

    def __str__(self) -> str:
        where = ", ".join(f"{path or 'the model'} {count}" for path, count in self.left.items())
        return f"tokens are permuted {self.after} times a call instead of {self.before}: {where}"


def hoist(capture: Capture, plan: Plan) -> Hoisting | None:
    """Move permutations out of a rewritten graph's layers, in place, if that saves any; None without sparse sites."""
    sites = [(decision, *decision.parsed()) for decision in plan.decisions if decision.is_sparse]
    grids = Counter(layout.grid.sizes for _, _, layout in sites if layout is not None)
    if not grids:
        return None
    sizes = grids.most_common(1)[0][0]
    patterns = {
        pattern
        for _, rules, layout in sites
        if layout is not None and layout.grid.sizes == sizes
        for pattern in rules.patterns
    }
    walk, before = _Walk(capture.graph, sizes, patterns), AT_A_SITE * len(sites)
    unmoved = Hoisting(before, before, {decision.site: AT_A_SITE for decision, _, _ in sites})
    try:
        graph = walk.run()
    except _Unsafe:
        return unmoved
    if walk.left.total() >= before:
        return unmoved
    capture.graph.graph = graph
    capture.graph.recompile()
    return Hoisting(before, walk.left.total(), dict(walk.left))


def permute(x: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    """``x.index_select(dim, index)``, laid out in memory as x is."""
    by_stride = sorted(range(x.dim()), key=lambda axis: -x.stride(axis))
    permuted = x.permute(by_stride).index_select(by_stride.index(dim), index)
    return permuted.permute([by_stride.index(axis) for axis in range(x.dim())])


class _Unsafe(Exception):
    """A value would be changed in place where a permuted copy of it would have to change too."""


class _Walk:
    """Copies a graph, node by node in order, each value in the order that it can be had in."""

    def __init__(self, module: GraphModule, sizes: tuple[int, ...], patterns: Collection[Pattern]) -> None:
        nest = nest_of(patterns)
        self.module, self.sizes, self.stored = module, sizes, spell_nest(nest)
        self.order = order_of(sizes, nest)
        self.served = {pattern for pattern in patterns if runs_of(pattern.grid(sizes), self.order) is not None}
        self.graph = Graph()
        self.made = dict[Node, Node]()
        self.states = dict[Node, Any]()
        self.permuted = dict[tuple[Node, State], Node]()
        self.roots = dict[Node, Node]()
        self.left = Counter[str]()

    def run(self) -> Graph:
        for node in self.module.graph.nodes:
            if node.op != "output":
                self.visit(node)
                continue
            results = {x: self.value(x, None, node) for x in node.all_input_nodes}
            self.graph.output(map_arg(node.args[0], results.__getitem__))
        return self.graph

    def visit(self, node: Node) -> None:
        written = _written(node)
        may_commute = node.op == "call_function" and (written is None or self.states[written] is not None)
        proof = self.prove(node) if may_commute else None
        wanted = proof.inputs if proof is not None else {}
        inputs = {x: self.value(x, wanted.get(x), node) for x in node.all_input_nodes}
        self.made[node] = copied = self.graph.node_copy(node, inputs.__getitem__)
        self.states[node] = proof.output if proof is not None else None
        if node.target is grouped_attention:
            if proof is None:
                self.left[module_path(node)] += AT_A_SITE
            else:
                copied.kwargs = {**copied.kwargs, "stored": self.stored}
        self.roots[node] = self.roots[node.all_input_nodes[0]] if is_alias(node) else node
        if written is not None:
            self._forget(written, is_stored=proof is not None)

    def prove(self, node: Node) -> Proof | None:
        if node.target is not grouped_attention:
            return prove(node, self.states)
        layout, rules, is_causal = TokenLayout.parse(str(node.args[7])), Rules.parse(str(node.args[8])), node.args[4]
        if layout.grid.sizes != self.sizes or not self.served.issuperset(rules.patterns) or is_causal:
            return None
        return attention(node, layout.grid_start, len(self.order))

    def _forget(self, written: Node, is_stored: bool) -> None:
        """A value was changed in place: permuted copies are stale, and what shares its memory must be stored alike."""
        root = self.roots[written]
        for node in [node for node, other in self.roots.items() if other is root]:
            if (self.states[node] is not None) != is_stored:
                raise _Unsafe
        for key in [key for key in self.permuted if self.roots[key[0]] is root]:
            del self.permuted[key]

    def value(self, x: Node, wanted: State, user: Node) -> Node:
        """A value in the state that a user wants it in, permuted if it must be."""
        state = self.states[x]
        if state == wanted or not isinstance(state, Stored | None):
            return self.made[x]
        if (x, wanted) not in self.permuted:
            made = self.made[x] if state is None else self._permute(x, self.made[x], state, user, back=True)
            if wanted is not None:
                raised = self._raise(x, wanted, user) if state is None else None
                made = raised or self._permute(x, made, wanted, user, back=False)
            self.permuted[x, wanted] = made
        return self.permuted[x, wanted]

    def _raise(self, x: Node, wanted: Stored, user: Node) -> Node | None:
        """A view or a cast of something that is permuted instead, once for all its views and casts."""
        if not is_alias(x) or len(x.all_input_nodes) != 1 or self.states[source := x.all_input_nodes[0]] is not None:
            return None
        for dim, size in enumerate(_shape(source)):
            state = Stored(dim, wanted.start, wanted.tokens)
            proof = prove(x, {source: state}) if size == _shape(x)[wanted.dim] else None
            if proof is not None and proof.output == wanted:
                return self.graph.node_copy(x, {source: self.value(source, state, user)}.__getitem__)
        return None

    def _permute(self, x: Node, made: Node, state: Stored, user: Node, back: bool) -> Node:
        self.left[module_path(user)] += 1
        length = x.meta["val"].shape[state.dim]
        index = self._index(length, state.start, back, x.meta["val"].device)
        permuted = self.graph.call_function(permute, (made, state.dim, index))
        permuted.meta = {name: user.meta[name] for name in ("nn_module_stack",) if name in user.meta}
        permuted.meta["val"] = torch.empty_like(x.meta["val"])
        return permuted

    def _index(self, length: int, start: int, back: bool, device: torch.device) -> Node:
        """The permutation of a sequence that holds the grid's tokens from ``start`` on, or its inverse."""
        stop = start + len(self.order)
        index = torch.cat([torch.arange(start), start + self.order, torch.arange(stop, length)])
        name = f"_{'place' if back else 'order'}_{length}_{start}"
        self.module.register_buffer(name, (index.argsort() if back else index).to(device), persistent=False)
        node = self.graph.get_attr(name)
        node.meta["val"] = getattr(self.module, name)
        return node


def _shape(node: Node) -> tuple[int, ...]:
    """The shape of a tensor; none of what is several."""
    return tuple(getattr(node.meta["val"], "shape", ()))


def _written(node: Node) -> Node | None:
    """The value that an operation changes in place, None if it changes none; raises _Unsafe."""
    changed = changed_by(node)
    if not changed:
        return None
    if tuple(changed) != node.args[:1] or not isinstance(changed[0], Node):
        raise _Unsafe
    return changed[0]
