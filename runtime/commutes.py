"""Which operations commute with a permutation of tokens: one rule an operation, found by its ATen name.

A rule is asked for an operation some of whose inputs are *stored*, that is permuted along one dimension. Its answer is
a proof: the states that all inputs must have, and the state that the output then has. None: it does not commute, or
the rule cannot tell. Rules look at shapes and arguments only; that they are right is tested on values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from planner.shadow_rules import op_name


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


def prove(node: Node, states: States) -> Proof | None:
    """The proof that an operation commutes, None where none of its inputs is stored or there is no proof."""
    if all(states[x] is None for x in node.all_input_nodes):
        return None
    name = op_name(node.target)
    rule = _RULES.get(name)
    if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        rule = _pointwise
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


def _first(node: Node, states: States) -> tuple[Node, Stored] | None:
    """The first input and its state, if that is stored and no other input is."""
    x = node.args[0]
    if not isinstance(x, Node) or not isinstance(states[x], Stored):
        return None
    return (
        None if any(states[other] is not None for other in node.all_input_nodes if other is not x) else (x, states[x])
    )


def _moved(state: Stored, dim: int) -> Stored:
    return Stored(dim, state.start, state.tokens)


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


def _like_first(node: Node, states: States) -> Proof | None:
    """What looks at the values of its first input only, if at any: the others stay as they are."""
    x = node.args[0]
    assert isinstance(x, Node)
    others = {other: states[other] for other in node.all_input_nodes}
    return Proof(others, states[x])


def _channels_mixed(node: Node, states: States) -> Proof | None:
    """A linear layer: every dimension but the last."""
    found = _first(node, states)
    if found is None or found[1].dim == len(_shape(found[0])) - 1:
        return None
    return Proof({found[0]: found[1]}, found[1])


def _matmul(node: Node, states: States) -> Proof | None:
    """Rows of the left factor, where the right one is the same for all of them."""
    found = _first(node, states)
    if found is None or len(_shape(found[0])) < 2 or found[1].dim != len(_shape(found[0])) - 2:
        return None
    return Proof({found[0]: found[1]}, _moved(found[1], len(_shape(node)) - 2))


def _norm(node: Node, states: States) -> Proof | None:
    found = _first(node, states)
    if found is None or found[1].dim >= len(_shape(found[0])) - len(node.args[1]):  # pyright: ignore[reportArgumentType]
        return None
    return Proof({found[0]: found[1]}, found[1])


def _softmax(node: Node, states: States) -> Proof | None:
    found = _first(node, states)
    if found is None or _dim(found[0], _argument(node, 1, "dim")) == found[1].dim:
        return None
    return Proof({found[0]: found[1]}, found[1])


def _reduction(node: Node, states: States) -> Proof | None:
    """Over other dimensions the tokens stay; over the tokens' own nothing depends on their order."""
    found, dims = _first(node, states), _argument(node, 1, "dim")
    if found is None or not isinstance(node.meta["val"], torch.Tensor) or not isinstance(dims, list | tuple | int):
        return None
    x, state = found
    reduced = {_dim(x, dim) for dim in ([dims] if isinstance(dims, int) else dims)} or set(range(len(_shape(x))))
    if state.dim in reduced:
        return Proof({x: state}, None)
    keeps = len(_shape(node)) == len(_shape(x))
    return Proof({x: state}, _moved(state, state.dim - (0 if keeps else sum(dim < state.dim for dim in reduced))))


def _view(node: Node, states: States) -> Proof | None:
    """The dimension must come out whole, with as many elements before it as there were."""
    found = _first(node, states)
    if found is None:
        return None
    x, state = found
    before, length = math.prod(_shape(x)[: state.dim]), _shape(x)[state.dim]
    for dim, size in enumerate(_shape(node)):
        if size == length and math.prod(_shape(node)[:dim]) == before:
            return Proof({x: state}, _moved(state, dim))
    return None


def _permute(node: Node, states: States) -> Proof | None:
    found = _first(node, states)
    if found is None:
        return None
    x, state = found
    dims = [_dim(x, dim) for dim in _argument(node, 1, "dims")]
    return Proof({x: state}, _moved(state, dims.index(state.dim)))


def _transpose(node: Node, states: States) -> Proof | None:
    found = _first(node, states)
    if found is None:
        return None
    x, state = found
    a, b = _dim(x, _argument(node, 1, "dim0")), _dim(x, _argument(node, 2, "dim1"))
    return Proof({x: state}, _moved(state, {a: b, b: a}.get(state.dim, state.dim)))


def _expand(node: Node, states: States) -> Proof | None:
    """Dimensions are aligned at the last; the tokens' own is not repeated."""
    found = _first(node, states)
    if found is None:
        return None
    x, state = found
    dim = state.dim + len(_shape(node)) - len(_shape(x))
    return Proof({x: state}, _moved(state, dim)) if _shape(node)[dim] == _shape(x)[state.dim] else None


def _repeat_interleave(node: Node, states: States) -> Proof | None:
    found, dim = _first(node, states), _argument(node, 2, "dim")
    if found is None or dim is None or _dim(found[0], dim) == found[1].dim:
        return None
    return Proof({found[0]: found[1]}, found[1])


def _part(state: Stored, start: int, stop: int) -> tuple[bool, State]:
    """(whether a range along the tokens' dimension holds all grid tokens or none, its state)."""
    if start <= state.start and state.start + state.tokens <= stop:
        return True, Stored(state.dim, state.start - start, state.tokens)
    return stop <= state.start or start >= state.start + state.tokens, None


def _slice(node: Node, states: States) -> Proof | None:
    found = _first(node, states)
    if found is None:
        return None
    x, state = found
    dim, step = _dim(x, _argument(node, 1, "dim", 0)), _argument(node, 4, "step", 1)
    if dim != state.dim:
        return Proof({x: state}, state)
    start, stop, _ = slice(_argument(node, 2, "start"), _argument(node, 3, "end")).indices(_shape(x)[dim])
    is_known, part = _part(state, start, stop)
    return Proof({x: state}, part) if is_known and step == 1 else None


def _select(node: Node, states: States) -> Proof | None:
    found = _first(node, states)
    if found is None:
        return None
    x, state = found
    dim, index = _dim(x, _argument(node, 1, "dim")), _argument(node, 2, "index")
    if dim != state.dim:
        return Proof({x: state}, _moved(state, state.dim - (dim < state.dim)))
    index %= _shape(x)[dim]
    return None if state.start <= index < state.start + state.tokens else Proof({x: state}, None)


def _split(node: Node, states: States) -> Proof | None:
    """Split and chunk, along any dimension."""
    found, pieces = _first(node, states), node.meta["val"]
    if found is None:
        return None
    x, state = found
    if _dim(x, _argument(node, 2, "dim", 0)) != state.dim:
        return Proof({x: state}, [state] * len(pieces))
    ends = list(itertools.accumulate((piece.shape[state.dim] for piece in pieces), initial=0))
    parts = [_part(state, start, stop) for start, stop in itertools.pairwise(ends)]
    return Proof({x: state}, [part for _, part in parts]) if all(is_known for is_known, _ in parts) else None


def _unbind(node: Node, states: States) -> Proof | None:
    found = _first(node, states)
    if found is None:
        return None
    x, state = found
    dim = _dim(x, _argument(node, 1, "dim", 0))
    moved = _moved(state, state.dim - (dim < state.dim))
    return None if dim == state.dim else Proof({x: state}, [moved] * len(node.meta["val"]))


def _getitem(node: Node, states: States) -> Proof | None:
    x, index = node.args
    assert isinstance(x, Node)
    return Proof({x: states[x]}, states[x][index]) if isinstance(states[x], Sequence) else None


def _alike(nodes: Sequence[Node], states: States) -> Stored | None:
    """The one state of some values that must share it."""
    found = {states[x] for x in nodes} - {None}
    return found.pop() if len(found) == 1 else None


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


def _stack(node: Node, states: States) -> Proof | None:
    tensors, dim = list(_argument(node, 0, "tensors")), _dim(node, _argument(node, 1, "dim", 0))
    state = _alike(tensors, states)
    return (
        None if state is None else Proof(dict.fromkeys(tensors, state), _moved(state, state.dim + (dim <= state.dim)))
    )


def _complex(node: Node, states: States) -> Proof | None:
    """Pairs of the last dimension as complex numbers, and back."""
    found = _first(node, states)
    if found is None or found[1].dim == len(_shape(node)) - (op_name(node.target) == "view_as_real"):
        return None
    return Proof({found[0]: found[1]}, found[1])


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


def _rules() -> Iterator[tuple[str, Rule]]:
    for rule, names in (
        (_pointwise, "copy_"),
        (_like_first, "to _to_copy contiguous clone type_as dropout detach alias empty_like zeros_like ones_like"),
        (_channels_mixed, "linear"),
        (_matmul, "matmul mm bmm"),
        (_norm, "layer_norm rms_norm"),
        (_softmax, "softmax _softmax"),
        (_reduction, "mean sum amax amin var"),
        (_view, "view reshape _unsafe_view flatten unflatten squeeze unsqueeze"),
        (_permute, "permute"),
        (_transpose, "transpose"),
        (_expand, "expand"),
        (_repeat_interleave, "repeat_interleave"),
        (_slice, "slice"),
        (_select, "select"),
        (_split, "split split_with_sizes chunk"),
        (_unbind, "unbind"),
        (_getitem, "getitem"),
        (_concatenate, "cat concat"),
        (_stack, "stack"),
        (_complex, "view_as_complex view_as_real"),
        (_dense_attention, "scaled_dot_product_attention"),
    ):
        yield from ((name, rule) for name in names.split())


_RULES: dict[str, Rule] = dict(_rules())
