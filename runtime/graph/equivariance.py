"""Which operations commute with a permutation of tokens: rules, found by an operation's name or by its kind.

A rule is asked for an operation some of whose inputs are *stored*, that is permuted along one dimension. Its answer is
a proof: the states that all inputs must have, and the state that the output then has. None: it does not commute, or
the rule cannot tell. Rules look at shapes and arguments only; that they are right is tested on values.
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
class Stored:
    """Permuted along ``dim``: from ``start`` on lie ``tokens`` tokens of a grid, group by group."""

    dim: int
    start: int
    tokens: int


State = Stored | None
"""None: in the model's own order, or without tokens."""


@dataclass(frozen=True)
class Proof:
    """That an operation commutes: the states of its inputs (None of those that are not named) and of its outputs."""

    inputs: Mapping[Node, State]
    output: State | Sequence[State]


States = Mapping[Node, Any]
Rule = Callable[[Node, States], Proof | None]

RULES: Registry[Rule] = Registry("rule of equivariance", builtin=(__name__,))
"""Rules by the name of an operation."""

KIND_RULES: Registry[Rule] = Registry("rule of equivariance for a kind of operation", builtin=(__name__,))
"""Rules by the kind of an operation, for those that have none of their own."""


def prove(node: Node, states: States) -> Proof | None:
    """The proof that an operation commutes, None where none of its inputs is stored or there is no proof."""
    if all(states[x] is None for x in node.all_input_nodes):
        return None
    rule = find_rule(node.target, RULES, KIND_RULES)
    return rule(node, states) if rule is not None else None


def attention(node: Node, start: int, tokens: int) -> Proof:
    """What a planned attention needs of (query, key, value, mask over keys), and what it gives."""
    query, key, value, mask = node.args[:4]
    stored = Stored(2, start, tokens)
    inputs = {x: stored for x in (query, key, value) if isinstance(x, Node)}
    if isinstance(mask, Node) and _shape(mask)[-1] > 1:
        inputs[mask] = Stored(len(_shape(mask)) - 1, start, tokens)
    return Proof(inputs, stored)


def _shape(node: Node) -> torch.Size:
    return node.meta["val"].shape


def _dim(node: Node, dim: int) -> int:
    return dim % len(_shape(node))


def _argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


class _Mixes(Exception):
    """The operation does not commute, or its rule cannot tell."""


def _of_one(rule: Callable[[Node, Node, Stored], State | Sequence[State]]) -> Rule:
    """A rule for operations whose first input alone may be stored: from that and its state to the output's state."""

    def ruled(node: Node, states: States) -> Proof | None:
        x, stored = node.args[0], [other for other in node.all_input_nodes if states[other] is not None]
        if stored != [x] or not isinstance(x, Node) or not isinstance(states[x], Stored):
            return None
        try:
            return Proof({x: states[x]}, rule(node, x, states[x]))
        except _Mixes:
            return None

    return ruled


def _but_along(dim: int, state: Stored) -> Stored:
    """The state as it is, unless it lies along a dimension."""
    if state.dim == dim:
        raise _Mixes
    return state


def _moved(state: Stored, dim: int) -> Stored:
    return Stored(dim, state.start, state.tokens)


@RULES.register("copy_")
@KIND_RULES.register(Kind.POINTWISE)
def _pointwise(node: Node, states: States) -> Proof | None:
    """Tensors are aligned at their last dimensions; those that have the stored one must be stored alike."""
    tensors = [x for x in node.all_input_nodes if isinstance(x.meta["val"], torch.Tensor)]
    places = {
        (len(_shape(x)) - state.dim, _shape(x)[state.dim], state.start, state.tokens)
        for x, state in ((x, states[x]) for x in tensors)
        if state is not None
    }
    if len(places) != 1:
        return None
    ((from_end, length, start, tokens),) = places
    inputs = dict[Node, State]()
    for x in tensors:
        dim = len(_shape(x)) - from_end
        if dim >= 0 and _shape(x)[dim] != 1:
            if _shape(x)[dim] != length:
                return None
            inputs[x] = Stored(dim, start, tokens)
    return Proof(inputs, Stored(len(_shape(node)) - from_end, start, tokens))


@RULES.register("dropout")
@RULES.register("empty_like")
@RULES.register("zeros_like")
@RULES.register("ones_like")
@KIND_RULES.register(Kind.COPY)
def _like_first(node: Node, states: States) -> Proof | None:
    """What looks at the values of its first input only, if at any: the others stay as they are."""
    x = node.args[0]
    assert isinstance(x, Node)
    others = {other: states[other] for other in node.all_input_nodes}
    return Proof(others, states[x])


@RULES.register("linear")
@_of_one
def _channels_mixed(_node: Node, x: Node, state: Stored) -> State:
    """A linear layer: every dimension but the last."""
    return _but_along(_dim(x, -1), state)


@RULES.register("matmul")
@RULES.register("mm")
@RULES.register("bmm")
@_of_one
def _matmul(node: Node, x: Node, state: Stored) -> State:
    """Rows of the left factor, where the right one is the same for all of them."""
    if state.dim != len(_shape(x)) - 2:
        raise _Mixes
    return _moved(state, len(_shape(node)) - 2)


@RULES.register("layer_norm")
@RULES.register("rms_norm")
@_of_one
def _norm(node: Node, x: Node, state: Stored) -> State:
    if state.dim >= len(_shape(x)) - len(_argument(node, 1, "normalized_shape")):
        raise _Mixes
    return state


@RULES.register("softmax")
@RULES.register("_softmax")
@_of_one
def _softmax(node: Node, x: Node, state: Stored) -> State:
    return _but_along(_dim(x, _argument(node, 1, "dim")), state)


@RULES.register("mean")
@RULES.register("sum")
@RULES.register("amax")
@RULES.register("amin")
@RULES.register("var")
@_of_one
def _reduction(node: Node, x: Node, state: Stored) -> State:
    """Over other dimensions the tokens stay; over the tokens' own nothing depends on their order."""
    dims = _argument(node, 1, "dim")
    if not isinstance(node.meta["val"], torch.Tensor) or not isinstance(dims, list | tuple | int):
        raise _Mixes
    reduced = {_dim(x, dim) for dim in ([dims] if isinstance(dims, int) else dims)} or set(range(len(_shape(x))))
    if state.dim in reduced:
        return None
    keeps = len(_shape(node)) == len(_shape(x))
    return _moved(state, state.dim - (0 if keeps else sum(dim < state.dim for dim in reduced)))


@RULES.register("view")
@RULES.register("reshape")
@RULES.register("_unsafe_view")
@RULES.register("flatten")
@RULES.register("unflatten")
@RULES.register("squeeze")
@RULES.register("unsqueeze")
@_of_one
def _view(node: Node, x: Node, state: Stored) -> State:
    """The dimension must come out whole, with as many elements before it as there were."""
    before, length = math.prod(_shape(x)[: state.dim]), _shape(x)[state.dim]
    for dim, size in enumerate(_shape(node)):
        if size == length and math.prod(_shape(node)[:dim]) == before:
            return _moved(state, dim)
    raise _Mixes


@RULES.register("permute")
@_of_one
def _permute(node: Node, x: Node, state: Stored) -> State:
    return _moved(state, [_dim(x, dim) for dim in _argument(node, 1, "dims")].index(state.dim))


@RULES.register("transpose")
@_of_one
def _transpose(node: Node, x: Node, state: Stored) -> State:
    a, b = _dim(x, _argument(node, 1, "dim0")), _dim(x, _argument(node, 2, "dim1"))
    return _moved(state, {a: b, b: a}.get(state.dim, state.dim))


@RULES.register("expand")
@_of_one
def _expand(node: Node, x: Node, state: Stored) -> State:
    """Dimensions are aligned at the last; the tokens' own is not repeated."""
    dim = state.dim + len(_shape(node)) - len(_shape(x))
    if _shape(node)[dim] != _shape(x)[state.dim]:
        raise _Mixes
    return _moved(state, dim)


@RULES.register("repeat_interleave")
@_of_one
def _repeat_interleave(node: Node, x: Node, state: Stored) -> State:
    dim = _argument(node, 2, "dim")
    if dim is None:
        raise _Mixes
    return _but_along(_dim(x, dim), state)


def _part(state: Stored, start: int, stop: int) -> State:
    """The state of a range along the tokens' dimension, which must hold all grid tokens or none."""
    if start <= state.start and state.start + state.tokens <= stop:
        return Stored(state.dim, state.start - start, state.tokens)
    if start < state.start + state.tokens and state.start < stop:
        raise _Mixes
    return None


@RULES.register("slice")
@_of_one
def _slice(node: Node, x: Node, state: Stored) -> State:
    dim = _dim(x, _argument(node, 1, "dim", 0))
    if dim != state.dim:
        return state
    if _argument(node, 4, "step", 1) != 1:
        raise _Mixes
    start, stop, _ = slice(_argument(node, 2, "start"), _argument(node, 3, "end")).indices(_shape(x)[dim])
    return _part(state, start, stop)


@RULES.register("select")
@_of_one
def _select(node: Node, x: Node, state: Stored) -> State:
    dim, index = _dim(x, _argument(node, 1, "dim")), _argument(node, 2, "index")
    if dim != state.dim:
        return _moved(state, state.dim - (dim < state.dim))
    if state.start <= index % _shape(x)[dim] < state.start + state.tokens:
        raise _Mixes
    return None


@RULES.register("split")
@RULES.register("split_with_sizes")
@RULES.register("chunk")
@_of_one
def _split(node: Node, x: Node, state: Stored) -> Sequence[State]:
    """Split and chunk, along any dimension."""
    pieces = node.meta["val"]
    if _dim(x, _argument(node, 2, "dim", 0)) != state.dim:
        return [state] * len(pieces)
    ends = itertools.accumulate((piece.shape[state.dim] for piece in pieces), initial=0)
    return [_part(state, start, stop) for start, stop in itertools.pairwise(ends)]


@RULES.register("unbind")
@_of_one
def _unbind(node: Node, x: Node, state: Stored) -> Sequence[State]:
    dim = _dim(x, _argument(node, 1, "dim", 0))
    state = _but_along(dim, state)
    return [_moved(state, state.dim - (dim < state.dim))] * len(node.meta["val"])


@RULES.register("getitem")
def _getitem(node: Node, states: States) -> Proof | None:
    x, index = node.args
    assert isinstance(x, Node)
    return Proof({x: states[x]}, states[x][index]) if isinstance(states[x], Sequence) else None


def _alike(nodes: Sequence[Node], states: States) -> Stored | None:
    """The one state of some values that must share it."""
    found = {states[x] for x in nodes} - {None}
    return found.pop() if len(found) == 1 else None


@RULES.register("cat")
@RULES.register("concat")
def _concatenate(node: Node, states: States) -> Proof | None:
    tensors, dim = list(_argument(node, 0, "tensors")), _dim(node, _argument(node, 1, "dim", 0))
    stored = [x for x in tensors if states[x] is not None]
    state = _alike(tensors, states)
    if state is None:
        return None
    if state.dim != dim:
        return Proof(dict.fromkeys(tensors, state), state)
    if len(stored) != 1:
        return None
    before = sum(_shape(x)[dim] for x in tensors[: tensors.index(stored[0])])
    return Proof({stored[0]: state}, Stored(dim, before + state.start, state.tokens))


@RULES.register("stack")
def _stack(node: Node, states: States) -> Proof | None:
    tensors, dim = list(_argument(node, 0, "tensors")), _dim(node, _argument(node, 1, "dim", 0))
    state = _alike(tensors, states)
    return (
        None if state is None else Proof(dict.fromkeys(tensors, state), _moved(state, state.dim + (dim <= state.dim)))
    )


@RULES.register("view_as_complex")
@RULES.register("view_as_real")
@_of_one
def _complex(node: Node, x: Node, state: Stored) -> State:
    """Pairs of the last dimension as complex numbers, and back."""
    return state if op_name(node.target) == "view_as_real" else _but_along(_dim(x, -1), state)


@RULES.register("scaled_dot_product_attention")
def _dense_attention(node: Node, states: States) -> Proof | None:
    """Queries in any order; keys, values and a mask over keys in one."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    query, key, value, mask, dropout, is_causal = (_argument(node, at, name) for at, name in enumerate(names))
    if dropout or is_causal or (mask is not None and len(_shape(mask)) > 1 and _shape(mask)[-2] != 1):
        return None
    inputs = dict[Node, State]({query: states[query]})
    memory = _alike([key, value], states)
    if any(state is not None and state.dim != len(_shape(query)) - 2 for state in (states[query], memory)):
        return None
    inputs |= {key: memory, value: memory}
    if mask is not None and _shape(mask)[-1] > 1:
        inputs[mask] = None if memory is None else _moved(memory, len(_shape(mask)) - 1)
    return Proof(inputs, states[query])
