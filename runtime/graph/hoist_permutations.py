"""Hoisting: tokens are permuted into grouped order once, not around every attention.

Attention by contiguous runs (planner.runtime.attention.cpu) takes tokens in grouped order. An operation f that treats
tokens alike and does not mix them is equivariant under a permutation P of tokens, f(P x) = P f(x): P moves behind f.
The pass visits a captured graph in order, keeps values in grouped order (as P x) from planned attention on as long as a
rule shows equivariance, and permutes back where none does. Each value is permuted at most once each way, so that values
which several layers use (position tables, a residual stream) are permuted in the first of them only."""

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
from planner.runtime.attention.group_hierarchy import GroupHierarchy, group_runs
from planner.runtime.attention.operator import grouped_attention
from planner.runtime.graph.equivariance import Equivariance, GroupedOrder, Order, attention, find_equivariance

AT_A_SITE = 4
"""Permutations at a site that is not hoisted: of queries, keys, values and output."""


@dataclass(frozen=True)
class Hoisting:
    """Permutations of tokens in a call before and after hoisting.

    by_module: how many permutations after hoisting each module has, by path; modules without any are left out.
    """

    before: int
    after: int
    by_module: Mapping[str, int]

    def __str__(self) -> str:
        where = ", ".join(f"{path or 'the model'} {count}" for path, count in self.by_module.items())
        return f"tokens are permuted {self.after} times a call instead of {self.before}: {where}"


def hoist(capture: Capture, plan: Plan) -> Hoisting | None:
    """Move permutations out of a rewritten graph's layers, in place, if that saves some; None without sparse sites."""
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
    if walk.by_module.total() >= before:
        return unmoved
    capture.graph.graph = graph
    capture.graph.recompile()
    return Hoisting(before, walk.by_module.total(), dict(walk.by_module))


def permute(x: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    """Return ``x.index_select(dim, index)`` with the strides of x.

    x: any shape and dtype. index: (x.shape[dim],) int64, a permutation.
    """
    by_stride = sorted(range(x.dim()), key=lambda axis: -x.stride(axis))
    permuted = x.permute(by_stride).index_select(by_stride.index(dim), index)
    return permuted.permute([by_stride.index(axis) for axis in range(x.dim())])


class _Unsafe(Exception):
    """An operation changes a value in place whose permuted copy would have to change too."""


class _Walk:
    """Copies a graph node by node, keeping each value in grouped order where it can."""

    def __init__(self, module: GraphModule, sizes: tuple[int, ...], patterns: Collection[Pattern]) -> None:
        hierarchy = GroupHierarchy.of(patterns)
        self.module, self.sizes, self.spelling = module, sizes, str(hierarchy)
        self.token_order = hierarchy.token_order(sizes)
        self.supported = {
            pattern for pattern in patterns if group_runs(pattern.grid(sizes), self.token_order) is not None
        }
        self.graph = Graph()
        self.copies = dict[Node, Node]()
        self.orders = dict[Node, Any]()
        self.permuted = dict[tuple[Node, Order], Node]()
        self.roots = dict[Node, Node]()
        self.by_module = Counter[str]()

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
        may_be_equivariant = node.op == "call_function" and (written is None or self.orders[written] is not None)
        equivariance = self.equivariance(node) if may_be_equivariant else None
        wanted = equivariance.inputs if equivariance is not None else {}
        inputs = {x: self.value(x, wanted.get(x), node) for x in node.all_input_nodes}
        self.copies[node] = copy = self.graph.node_copy(node, inputs.__getitem__)
        self.orders[node] = equivariance.output if equivariance is not None else None
        if node.target is grouped_attention:
            if equivariance is None:
                self.by_module[module_path(node)] += AT_A_SITE
            else:
                copy.kwargs = {**copy.kwargs, "token_order": self.spelling}
        self.roots[node] = self.roots[node.all_input_nodes[0]] if is_alias(node) else node
        if written is not None:
            self._forget(written, is_grouped=equivariance is not None)

    def equivariance(self, node: Node) -> Equivariance | None:
        if node.target is not grouped_attention:
            return find_equivariance(node, self.orders)
        layout, rules, is_causal = TokenLayout.parse(str(node.args[7])), Rules.parse(str(node.args[8])), node.args[4]
        if layout.grid.sizes != self.sizes or not self.supported.issuperset(rules.patterns) or is_causal:
            return None
        return attention(node, layout.grid_start, len(self.token_order))

    def _forget(self, written: Node, is_grouped: bool) -> None:
        """Drop permuted copies of a value that was changed in place; raise _Unsafe if aliases have another order."""
        root = self.roots[written]
        for node in [node for node, other in self.roots.items() if other is root]:
            if (self.orders[node] is not None) != is_grouped:
                raise _Unsafe
        for key in [key for key in self.permuted if self.roots[key[0]] is root]:
            del self.permuted[key]

    def value(self, x: Node, wanted: Order, user: Node) -> Node:
        """Return a value in the order that a user needs, permuted if it has another order."""
        order = self.orders[x]
        if order == wanted or not isinstance(order, GroupedOrder | None):
            return self.copies[x]
        if (x, wanted) not in self.permuted:
            copy = self.copies[x] if order is None else self._permute(x, self.copies[x], order, user, back=True)
            if wanted is not None:
                of_source = self._permute_source(x, wanted, user) if order is None else None
                copy = of_source or self._permute(x, copy, wanted, user, back=False)
            self.permuted[x, wanted] = copy
        return self.permuted[x, wanted]

    def _permute_source(self, x: Node, wanted: GroupedOrder, user: Node) -> Node | None:
        """Permute the source of a view or cast, once for all its views and casts; None if x is neither."""
        if not is_alias(x) or len(x.all_input_nodes) != 1 or self.orders[source := x.all_input_nodes[0]] is not None:
            return None
        for dim, size in enumerate(_shape(source)):
            order = GroupedOrder(dim, wanted.start, wanted.tokens)
            equivariance = find_equivariance(x, {source: order}) if size == _shape(x)[wanted.dim] else None
            if equivariance is not None and equivariance.output == wanted:
                return self.graph.node_copy(x, {source: self.value(source, order, user)}.__getitem__)
        return None

    def _permute(self, x: Node, copy: Node, order: GroupedOrder, user: Node, back: bool) -> Node:
        """Permute the copy of a value into an order, or with ``back`` from it into the model's own order."""
        self.by_module[module_path(user)] += 1
        length = x.meta["val"].shape[order.dim]
        index = self._index(length, order.start, back, x.meta["val"].device)
        permuted = self.graph.call_function(permute, (copy, order.dim, index))
        permuted.meta = {name: user.meta[name] for name in ("nn_module_stack",) if name in user.meta}
        permuted.meta["val"] = torch.empty_like(x.meta["val"])
        return permuted

    def _index(self, length: int, start: int, back: bool, device: torch.device) -> Node:
        """Add the permutation of a sequence that holds the grid's tokens from ``start`` on, or its inverse."""
        stop = start + len(self.token_order)
        index = torch.cat([torch.arange(start), start + self.token_order, torch.arange(stop, length)])
        name = f"_{'inverse' if back else 'order'}_{length}_{start}"
        self.module.register_buffer(name, (index.argsort() if back else index).to(device), persistent=False)
        node = self.graph.get_attr(name)
        node.meta["val"] = getattr(self.module, name)
        return node


def _shape(node: Node) -> tuple[int, ...]:
    """Return the shape of a tensor, and () of several values."""
    return tuple(getattr(node.meta["val"], "shape", ()))


def _written(node: Node) -> Node | None:
    """Return the first argument if the operation writes to it, else None; raise _Unsafe if it writes to another."""
    changed = changed_by(node)
    if not changed:
        return None
    if tuple(changed) != node.args[:1] or not isinstance(changed[0], Node):
        raise _Unsafe
    return changed[0]
