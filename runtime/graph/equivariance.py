"""Permutation equivariance: f(P x) = P f(x), shown by rules for operations, by their name or by their kind.

A rule takes an operation some of whose inputs are in *grouped order*, that is permuted along one dimension. It
returns an Equivariance: the orders that all inputs must have, and the order that the output then has; None if the
operation is not equivariant, or the rule cannot tell. Rules depend on shapes and arguments only. Tests compare each
rule with the operation's values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from planner.capture.ops import Kind, find_rule, op_name
from planner.registry import Registry


@dataclass(frozen=True)
class GroupedOrder:
    """A permutation along ``dim``: positions from ``start`` on hold the ``tokens`` tokens of a grid, group by group."""

    dim: int
    start: int
    tokens: int


Order = GroupedOrder | None
"""The order of a value; None for the model's own order, and for a value without tokens."""


@dataclass(frozen=True)
class Equivariance:
    """The orders in which an operation is equivariant: of its inputs (None for those not named), and of its output."""

    inputs: Mapping[Node, Order]
    output: Order | Sequence[Order]


Orders = Mapping[Node, Any]
Rule = Callable[[Node, Orders], Equivariance | None]

RULES: Registry[Rule] = Registry("rule of equivariance", builtin=(__name__,))
"""Rules by the name of an operation."""

KIND_RULES: Registry[Rule] = Registry("rule of equivariance for a kind of operation", builtin=(__name__,))
"""Rules by the kind of an operation, for those that have none of their own."""


def find_equivariance(node: Node, orders: Orders) -> Equivariance | None:
    """Apply the operation's rule; None if no input is in grouped order, or the rule shows no equivariance."""
    if all(orders[x] is None for x in node.all_input_nodes):
        return None
    rule = find_rule(node.target, RULES, KIND_RULES)
    return rule(node, orders) if rule is not None else None


def attention(node: Node, start: int, tokens: int) -> Equivariance:
    """Return the equivariance of a planned attention, whose grid has ``tokens`` tokens from position ``start`` on."""
    query, key, value, mask = node.args[:4]
    order = GroupedOrder(2, start, tokens)
    inputs = {x: order for x in (query, key, value) if isinstance(x, Node)}
    if isinstance(mask, Node) and _shape(mask)[-1] > 1:
        inputs[mask] = GroupedOrder(len(_shape(mask)) - 1, start, tokens)
    return Equivariance(inputs, order)


def _shape(node: Node) -> torch.Size:
    return node.meta["val"].shape


def _dim(node: Node, dim: int) -> int:
    return dim % len(_shape(node))


def _argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


class _NotEquivariant(Exception):
    """The operation is not equivariant, or its rule cannot tell."""


def _of_one(rule: Callable[[Node, Node, GroupedOrder], Order | Sequence[Order]]) -> Rule:
    """Make a rule for operations whose first input alone may be in grouped order.

    rule: (node, first input, its order) -> the output's order; raises _NotEquivariant.
    """

    def ruled(node: Node, orders: Orders) -> Equivariance | None:
        x, grouped = node.args[0], [other for other in node.all_input_nodes if orders[other] is not None]
        if grouped != [x] or not isinstance(x, Node) or not isinstance(orders[x], GroupedOrder):
            return None
        try:
            return Equivariance({x: orders[x]}, rule(node, x, orders[x]))
        except _NotEquivariant:
            return None

    return ruled


def _unless_along(dim: int, order: GroupedOrder) -> GroupedOrder:
    """Return the order unchanged; raise _NotEquivariant if it is along ``dim``."""
    if order.dim == dim:
        raise _NotEquivariant
    return order


def _moved(order: GroupedOrder, dim: int) -> GroupedOrder:
    return GroupedOrder(dim, order.start, order.tokens)


@RULES.register("copy_")
@KIND_RULES.register(Kind.POINTWISE)
def _pointwise(node: Node, orders: Orders) -> Equivariance | None:
    """Align tensors at their last dimensions; those with the permuted dimension must all be in the same order."""
    tensors = [x for x in node.all_input_nodes if isinstance(x.meta["val"], torch.Tensor)]
    positions = {
        (len(_shape(x)) - order.dim, _shape(x)[order.dim], order.start, order.tokens)
        for x, order in ((x, orders[x]) for x in tensors)
        if order is not None
    }
    if len(positions) != 1:
        return None
    ((from_end, length, start, tokens),) = positions
    inputs = dict[Node, Order]()
    for x in tensors:
        dim = len(_shape(x)) - from_end
        if dim >= 0 and _shape(x)[dim] != 1:
            if _shape(x)[dim] != length:
                return None
            inputs[x] = GroupedOrder(dim, start, tokens)
    return Equivariance(inputs, GroupedOrder(len(_shape(node)) - from_end, start, tokens))


@RULES.register("dropout")
@RULES.register("empty_like")
@RULES.register("zeros_like")
@RULES.register("ones_like")
@KIND_RULES.register(Kind.COPY)
def _like_first(node: Node, orders: Orders) -> Equivariance | None:
    """Keep the order of the first input; the others may have any order, as the operation does not read their values."""
    x = node.args[0]
    assert isinstance(x, Node)
    others = {other: orders[other] for other in node.all_input_nodes}
    return Equivariance(others, orders[x])


@RULES.register("linear")
@_of_one
def _channels_mixed(_node: Node, x: Node, order: GroupedOrder) -> Order:
    """Keep the order along every dimension but the last (a linear layer)."""
    return _unless_along(_dim(x, -1), order)


@RULES.register("matmul")
@RULES.register("mm")
@RULES.register("bmm")
@_of_one
def _matmul(node: Node, x: Node, order: GroupedOrder) -> Order:
    """Keep the order of the left factor's rows, which are all multiplied by the same right factor."""
    if order.dim != len(_shape(x)) - 2:
        raise _NotEquivariant
    return _moved(order, len(_shape(node)) - 2)


@RULES.register("layer_norm")
@RULES.register("rms_norm")
@_of_one
def _norm(node: Node, x: Node, order: GroupedOrder) -> Order:
    if order.dim >= len(_shape(x)) - len(_argument(node, 1, "normalized_shape")):
        raise _NotEquivariant
    return order


@RULES.register("softmax")
@RULES.register("_softmax")
@_of_one
def _softmax(node: Node, x: Node, order: GroupedOrder) -> Order:
    return _unless_along(_dim(x, _argument(node, 1, "dim")), order)


@RULES.register("mean")
@RULES.register("sum")
@RULES.register("amax")
@RULES.register("amin")
@RULES.register("var")
@_of_one
def _reduction(node: Node, x: Node, order: GroupedOrder) -> Order:
    """Keep the order if other dimensions are reduced; a reduction over tokens does not depend on their order."""
    dims = _argument(node, 1, "dim")
    if not isinstance(node.meta["val"], torch.Tensor) or not isinstance(dims, list | tuple | int):
        raise _NotEquivariant
    reduced = {_dim(x, dim) for dim in ([dims] if isinstance(dims, int) else dims)} or set(range(len(_shape(x))))
    if order.dim in reduced:
        return None
    keeps = len(_shape(node)) == len(_shape(x))
    return _moved(order, order.dim - (0 if keeps else sum(dim < order.dim for dim in reduced)))


@RULES.register("view")
@RULES.register("reshape")
@RULES.register("_unsafe_view")
@RULES.register("flatten")
@RULES.register("unflatten")
@RULES.register("squeeze")
@RULES.register("unsqueeze")
@_of_one
def _view(node: Node, x: Node, order: GroupedOrder) -> Order:
    """Find the dimension in the view: it must be whole, and have as many elements before it as in the input."""
    before, length = math.prod(_shape(x)[: order.dim]), _shape(x)[order.dim]
    for dim, size in enumerate(_shape(node)):
        if size == length and math.prod(_shape(node)[:dim]) == before:
            return _moved(order, dim)
    raise _NotEquivariant


@RULES.register("permute")
@_of_one
def _permute(node: Node, x: Node, order: GroupedOrder) -> Order:
    return _moved(order, [_dim(x, dim) for dim in _argument(node, 1, "dims")].index(order.dim))


@RULES.register("transpose")
@_of_one
def _transpose(node: Node, x: Node, order: GroupedOrder) -> Order:
    a, b = _dim(x, _argument(node, 1, "dim0")), _dim(x, _argument(node, 2, "dim1"))
    return _moved(order, {a: b, b: a}.get(order.dim, order.dim))


@RULES.register("expand")
@_of_one
def _expand(node: Node, x: Node, order: GroupedOrder) -> Order:
    """Align dimensions at the last; that of the tokens must not be expanded."""
    dim = order.dim + len(_shape(node)) - len(_shape(x))
    if _shape(node)[dim] != _shape(x)[order.dim]:
        raise _NotEquivariant
    return _moved(order, dim)


@RULES.register("repeat_interleave")
@_of_one
def _repeat_interleave(node: Node, x: Node, order: GroupedOrder) -> Order:
    dim = _argument(node, 2, "dim")
    if dim is None:
        raise _NotEquivariant
    return _unless_along(_dim(x, dim), order)


def _part(order: GroupedOrder, start: int, stop: int) -> Order:
    """Return the order of a range along the dimension of the tokens; the range must hold all grid tokens or none."""
    if start <= order.start and order.start + order.tokens <= stop:
        return GroupedOrder(order.dim, order.start - start, order.tokens)
    if start < order.start + order.tokens and order.start < stop:
        raise _NotEquivariant
    return None


@RULES.register("slice")
@_of_one
def _slice(node: Node, x: Node, order: GroupedOrder) -> Order:
    dim = _dim(x, _argument(node, 1, "dim", 0))
    if dim != order.dim:
        return order
    if _argument(node, 4, "step", 1) != 1:
        raise _NotEquivariant
    start, stop, _ = slice(_argument(node, 2, "start"), _argument(node, 3, "end")).indices(_shape(x)[dim])
    return _part(order, start, stop)


@RULES.register("select")
@_of_one
def _select(node: Node, x: Node, order: GroupedOrder) -> Order:
    dim, index = _dim(x, _argument(node, 1, "dim")), _argument(node, 2, "index")
    if dim != order.dim:
        return _moved(order, order.dim - (dim < order.dim))
    if order.start <= index % _shape(x)[dim] < order.start + order.tokens:
        raise _NotEquivariant
    return None


@RULES.register("split")
@RULES.register("split_with_sizes")
@RULES.register("chunk")
@_of_one
def _split(node: Node, x: Node, order: GroupedOrder) -> Sequence[Order]:
    """Return the order of each part of a split or chunk, along any dimension."""
    parts = node.meta["val"]
    if _dim(x, _argument(node, 2, "dim", 0)) != order.dim:
        return [order] * len(parts)
    ends = itertools.accumulate((part.shape[order.dim] for part in parts), initial=0)
    return [_part(order, start, stop) for start, stop in itertools.pairwise(ends)]


@RULES.register("unbind")
@_of_one
def _unbind(node: Node, x: Node, order: GroupedOrder) -> Sequence[Order]:
    dim = _dim(x, _argument(node, 1, "dim", 0))
    order = _unless_along(dim, order)
    return [_moved(order, order.dim - (dim < order.dim))] * len(node.meta["val"])


@RULES.register("getitem")
def _getitem(node: Node, orders: Orders) -> Equivariance | None:
    x, index = node.args
    assert isinstance(x, Node)
    return Equivariance({x: orders[x]}, orders[x][index]) if isinstance(orders[x], Sequence) else None


def _common_order(nodes: Sequence[Node], orders: Orders) -> GroupedOrder | None:
    """Return the one grouped order of some values, None if they have none or several."""
    distinct = {orders[x] for x in nodes} - {None}
    return distinct.pop() if len(distinct) == 1 else None


@RULES.register("cat")
@RULES.register("concat")
def _concatenate(node: Node, orders: Orders) -> Equivariance | None:
    tensors, dim = list(_argument(node, 0, "tensors")), _dim(node, _argument(node, 1, "dim", 0))
    grouped = [x for x in tensors if orders[x] is not None]
    order = _common_order(tensors, orders)
    if order is None:
        return None
    if order.dim != dim:
        return Equivariance(dict.fromkeys(tensors, order), order)
    if len(grouped) != 1:
        return None
    before = sum(_shape(x)[dim] for x in tensors[: tensors.index(grouped[0])])
    return Equivariance({grouped[0]: order}, GroupedOrder(dim, before + order.start, order.tokens))


@RULES.register("stack")
def _stack(node: Node, orders: Orders) -> Equivariance | None:
    tensors, dim = list(_argument(node, 0, "tensors")), _dim(node, _argument(node, 1, "dim", 0))
    order = _common_order(tensors, orders)
    return (
        None
        if order is None
        else Equivariance(dict.fromkeys(tensors, order), _moved(order, order.dim + (dim <= order.dim)))
    )


@RULES.register("view_as_complex")
@RULES.register("view_as_real")
@_of_one
def _complex(node: Node, x: Node, order: GroupedOrder) -> Order:
    """Keep the order where pairs of the last dimension become complex numbers, and back."""
    return order if op_name(node.target) == "view_as_real" else _unless_along(_dim(x, -1), order)


@RULES.register("scaled_dot_product_attention")
def _dense_attention(node: Node, orders: Orders) -> Equivariance | None:
    """Keep the order of queries; keys, values and a mask over keys must share one."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    query, key, value, mask, dropout, is_causal = (_argument(node, at, name) for at, name in enumerate(names))
    if dropout or is_causal or (mask is not None and len(_shape(mask)) > 1 and _shape(mask)[-2] != 1):
        return None
    inputs = dict[Node, Order]({query: orders[query]})
    memory = _common_order([key, value], orders)
    if any(order is not None and order.dim != len(_shape(query)) - 2 for order in (orders[query], memory)):
        return None
    inputs |= {key: memory, value: memory}
    if mask is not None and _shape(mask)[-1] > 1:
        inputs[mask] = None if memory is None else _moved(memory, len(_shape(mask)) - 1)
    return Equivariance(inputs, orders[query])
