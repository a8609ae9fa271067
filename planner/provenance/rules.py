"""How each operation moves provenance: one rule an operation, found by its ATen name.

A rule sees shadows in place of tensors (see provenance.py) and the result's metadata, and returns the result's shadow.
Operations that only move elements apply themselves to the shadow; the others are below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from planner.capture.ops import op_name

Shadow = torch.Tensor | None
ShadowTree = Any
"""A shadow, or a nest of them for an operation with several results."""

Rule = Callable[[list[Any], dict[str, Any], Any], ShadowTree]

SOURCE_STRIDE = 2**44
"""Ids of the k-th source begin at k * SOURCE_STRIDE."""

UNKNOWN = -1
"""Where an element came from is lost."""

UNTOUCHED = SOURCE_STRIDE
"""The first id of tokens that were made of no input's, such as zeros."""

INPUTS = 2 * SOURCE_STRIDE
"""Ids from here on are of the call's inputs; below are tokens that are weights, and tokens made of no input's."""

MAX_ELEMENTS = 2**27
"""The largest shadow that is written out (1 GiB); the pixels of any picture or video stay far below."""

aten = torch.ops.aten


class Unsupported(Exception):
    """A case that a rule does not know: its result has unknown provenance."""


def find(target: Any) -> Rule | None:
    """The rule of an operation, None if there is none."""
    name = op_name(target)
    if name in _RULES:
        return _RULES[name]
    if name in _MOVES:
        return lambda arguments, options, value: _move(target, arguments, options)
    if isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags:
        return _pointwise
    return None


def is_steered(target: Any) -> bool:
    """Whether the values of an argument, not only its shadow, decide what goes where."""
    return op_name(target) in _STEERED


def compress(shadow: torch.Tensor) -> torch.Tensor:
    """The shadow with size 1 along the dimensions in which it does not vary."""
    for dim in range(shadow.dim()):
        if shadow.stride(dim) == 0 and shadow.size(dim) > 1:
            shadow = shadow.narrow(dim, 0, 1)
    return shadow


def lost(value: Any) -> ShadowTree:
    """Shadow of a result, or a nest of them, of which nothing is known."""
    if isinstance(value, list | tuple):
        return [lost(item) for item in value]
    return torch.tensor(UNKNOWN).expand(value.shape) if isinstance(value, torch.Tensor) else None


def merge(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Provenance of an element made from two: what is no input's yields; two different inputs give unknown.

    Elements at the same place of two inputs of one shape (a picture and its control residual) keep the first.
    """
    if a is b or (a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()):
        return a
    # What is constant along every dimension in which the other varies says nothing about tokens.
    for one, other in ((a, b), (b, a)):
        if one.numel() == 1 and other.numel() > 1:
            return other
    agree = (a == b) | (a % SOURCE_STRIDE == b % SOURCE_STRIDE)
    yields = (a < INPUTS) | (b < INPUTS)
    return torch.where(yields, torch.maximum(a, b), torch.where(agree, torch.minimum(a, b), UNKNOWN))


def write_back(target: Any, arguments: list[Any], written: ShadowTree, whole: Any) -> Shadow:
    """Shadow of a whole tensor after a view of it was overwritten; lost if the view is no slice or selection.

    What was not overwritten keeps its shadow, or is of no input. Along a sliced dimension in which the new shadow does
    not vary, the rest of the tensor, if unknown, takes it too: a rotation that writes odd and even channels keeps its
    tokens.
    """
    name = op_name(target)
    if name not in ("slice", "select") or not isinstance(written, torch.Tensor):
        return lost(whole)
    old = arguments[0]
    untouched = UNKNOWN if isinstance(old, torch.Tensor) else UNTOUCHED
    new, dim = compress(written), (arguments[1] if len(arguments) > 1 else 0) % len(whole.shape)
    if name == "select" or new.size(dim) > 1:
        after = dim if name == "select" else dim + 1
        filled = torch.full([*new.shape[:dim], whole.shape[dim], *new.shape[after:]], untouched)
        target(filled, *arguments[1:]).copy_(new)
        new = filled
    return (merge(compress(old), new) if isinstance(old, torch.Tensor) else new).expand(whole.shape)


def _shadows(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, list | tuple):
        return [shadow for item in tree for shadow in _shadows(item)]
    return []


def _first(arguments: list[Any]) -> torch.Tensor:
    if not isinstance(arguments[0], torch.Tensor):
        raise Unsupported("its first argument has no provenance")
    return arguments[0]


def contract(shadow: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    """Drop provenance along dimensions: the first element that came from an input stands for all."""
    for dim in dims:
        first = shadow.narrow(dim, 0, min(1, shadow.size(dim)))
        if shadow.size(dim) > 1 and shadow.stride(dim) != 0 and bool((first < INPUTS).any()):
            shadow = compress(shadow)
            first = shadow.gather(dim, (shadow >= INPUTS).to(torch.int8).argmax(dim, keepdim=True))
        shadow = first
    return shadow


def _same(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    """The tokens of the first argument, in their places; of no input where it is of none."""
    shadow = arguments[0]
    return shadow.expand(value.shape) if isinstance(shadow, torch.Tensor) else None


def _pad_sequence(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    """Sequences one below the other, the short ones followed by tokens of no input."""
    batch_first = arguments[1] if len(arguments) > 1 else options.get("batch_first", False)
    made = torch.full(value.shape, UNTOUCHED)
    for row, part in zip(made if batch_first else made.transpose(0, 1), arguments[0], strict=True):
        if isinstance(part, torch.Tensor):
            row[: len(part)] = part
    return made


def _pointwise(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    rank, merged = len(value.shape), None
    for shadow in _shadows([arguments, list(options.values())]):
        small = compress(shadow)
        small = small.view(*[1] * (rank - small.dim()), *small.shape) if small.dim() < rank else small
        merged = small if merged is None else merge(merged, small)
    return None if merged is None else merged.expand(value.shape)


def _copy(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    return _pointwise([arguments[1]], {}, value)


def _channels_mixed(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    """Linear layers and norms mix the last dimension and keep the others."""
    return contract(_first(arguments), [-1]).expand(value.shape)


def _matmul(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    """Rows are those of the left factor; of no input where that is of none."""
    rows = arguments[0]
    return contract(rows, [-1]).expand(value.shape) if isinstance(rows, torch.Tensor) else None


def _einsum(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    """Tokens are those of the first factor that has any."""
    equation = str(arguments[0]).replace(" ", "")
    inputs, arrow, output = equation.partition("->")
    if not arrow or "." in equation:
        raise Unsupported(f"equation {equation!r}")
    for labels, factor in zip(inputs.split(","), arguments[1], strict=True):
        if isinstance(factor, torch.Tensor) and len(set(labels)) == len(labels):
            summed = [at for at, label in enumerate(labels) if label not in output]
            kept = [at for at, label in enumerate(labels) if label in output]
            shadow = contract(factor, summed).permute(*kept, *summed).flatten(len(kept)) if summed else factor
            shadow = shadow.squeeze(-1) if summed else factor.permute(*kept)
            order = sorted(range(len(kept)), key=lambda at: output.index(labels[kept[at]]))
            shadow = shadow.permute(*order)
            for at, label in enumerate(output):
                shadow = shadow if label in labels else shadow.unsqueeze(at)
            return shadow.expand(value.shape)
    return None


def _addmm(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    return _matmul(arguments[1:], options, value)


def _layer_norm(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    dims = arguments[1]
    return contract(_first(arguments), range(-len(dims), 0)).expand(value.shape)


def _attention(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    """Each query's result is its own, whatever it reads; of no input where the query is of none."""
    query = arguments[0]
    return contract(query, [-1]).expand(value.shape) if isinstance(query, torch.Tensor) else None


def _convolution(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    """An output element stands where the middle of its window was: a patch embedding keeps one pixel a patch."""
    shadow = contract(_first(arguments), [1])
    spatial = shadow.dim() - 2
    kernel = arguments[1].shape[2:]

    def setting(index: int, name: str, default: int) -> list[int]:
        given = arguments[index] if len(arguments) > index else options.get(name, default)
        if isinstance(given, str):
            raise Unsupported(f"padding={given!r}")
        given = list(given) if isinstance(given, list | tuple) else [given]
        return given * spatial if len(given) == 1 else given

    stride, padding, dilation = setting(3, "stride", 1), setting(4, "padding", 0), setting(5, "dilation", 1)
    for dim in range(spatial):
        middle = dilation[dim] * (kernel[dim] - 1) // 2 - padding[dim]
        at = torch.arange(value.shape[dim + 2]) * stride[dim] + middle
        if shadow.size(dim + 2) > 1 and shadow.stride(dim + 2) != 0:
            shadow = shadow.index_select(dim + 2, at.clamp(0, shadow.size(dim + 2) - 1))
    return compress(shadow).expand(value.shape)


def _embedding(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    if not isinstance(arguments[1], torch.Tensor):
        raise Unsupported("its indices have no provenance")
    return arguments[1].unsqueeze(-1).expand(value.shape)


def _reduction(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    """Along a reduced dimension that holds one token provenance stays; otherwise the result belongs to no one."""
    shadow = _first(arguments)
    given = dict(zip(("dim", "keepdim"), arguments[1:], strict=False)) | options
    dims, keep = given.get("dim"), given.get("keepdim", False)
    if dims is None or isinstance(dims, bool) or not isinstance(value, torch.Tensor):
        return None
    dims = [dims] if isinstance(dims, int) else list(dims)
    if any(shadow.size(dim) > 1 and shadow.stride(dim) != 0 for dim in dims):
        return None
    shadow = contract(shadow, dims)
    for dim in sorted((dim % shadow.dim() for dim in dims), reverse=True):
        shadow = shadow if keep else shadow.squeeze(dim)
    return shadow.expand(value.shape)


def _norm(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    """A reduction whose second argument is the order of the norm."""
    return _reduction([arguments[0], *arguments[2:]], options, value)


def _view(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    shadow = _first(arguments)
    try:
        return shadow.view(value.shape)
    except RuntimeError:
        if value.numel() > MAX_ELEMENTS:
            raise Unsupported(f"its shadow would hold {value.numel()} elements") from None
        return shadow.reshape(value.shape)


def _concatenate(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    parts, dim = arguments[0], arguments[1] if len(arguments) > 1 else options.get("dim", 0)
    rank = len(value.shape)
    dim %= rank
    parts = [part for part in parts if len(part.shape) == rank]
    small = [compress(part) if isinstance(part, torch.Tensor) else torch.full([1] * rank, UNKNOWN) for part in parts]
    if all(part.size(dim) == 1 and torch.equal(part, small[0]) for part in small):
        return small[0].expand(value.shape)
    small = [part.expand(_with(part.shape, dim, whole.shape[dim])) for part, whole in zip(small, parts, strict=True)]
    shape = torch.broadcast_shapes(*(_with(part.shape, dim, 1) for part in small))
    return torch.cat([part.expand(_with(shape, dim, part.size(dim))) for part in small], dim).expand(value.shape)


def _stack(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    dim = (arguments[1] if len(arguments) > 1 else options.get("dim", 0)) % len(value.shape)
    layers = [
        part.unsqueeze(dim) if isinstance(part, torch.Tensor) else torch.full([1] * len(value.shape), UNKNOWN)
        for part in arguments[0]
    ]
    return _concatenate([layers, dim], {}, value)


def _with(shape: Sequence[int], dim: int, size: int) -> list[int]:
    return [*shape[:dim], size, *shape[dim + 1 :]]


def _pad(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    shadow, widths = compress(_first(arguments)), list(arguments[1])
    for place in range(len(widths) // 2):
        before, after, dim = widths[2 * place], widths[2 * place + 1], shadow.dim() - 1 - place
        if before or after:
            shadow = shadow.expand(_with(shadow.shape, dim, arguments[0].size(dim)))
    return F.pad(shadow, widths, value=UNKNOWN).expand(value.shape)


def _index(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    shadow, indices = _first(arguments), _steering(arguments[1])
    kept = compress(shadow)
    for dim, index in enumerate(indices):
        if index is not None:
            kept = kept.expand(_with(kept.shape, dim, shadow.size(dim)))
    return aten.index(kept, indices).expand(value.shape)


def _index_select(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    shadow, dim = _first(arguments), arguments[1]
    kept = compress(shadow)
    kept = kept.expand(_with(kept.shape, dim % kept.dim(), shadow.size(dim)))
    return kept.index_select(dim, _steering(arguments[2])).expand(value.shape)


def _index_put(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    """What is written where the indices say; tokens of no input where nothing was and nothing is written."""
    return _written(arguments[0], _steering(arguments[1]), arguments[2], value)


def _index_copy(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    before = [None] * (arguments[1] % len(value.shape))
    return _written(arguments[0], [*before, _steering(arguments[2])], arguments[3], value)


def _masked_scatter(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    mask = _steering(arguments[1]).expand(value.shape)
    source = arguments[2].reshape(-1) if isinstance(arguments[2], torch.Tensor) else arguments[2]
    written = source[: int(mask.sum())] if isinstance(source, torch.Tensor) else source
    return _written(arguments[0], [mask], written, value)


def _written(whole: Any, indices: Sequence[Any], values: Any, value: Any) -> Shadow:
    """A shadow after values were written into it: it varies along the indexed dimensions, and where the values do."""
    if value.numel() > MAX_ELEMENTS:
        raise Unsupported(f"its shadow would hold {value.numel()} elements")
    made = whole if isinstance(whole, torch.Tensor) else torch.tensor(UNTOUCHED).expand(value.shape)
    made = made.clone(memory_format=torch.contiguous_format)
    held = values if isinstance(values, torch.Tensor) else torch.tensor(UNTOUCHED)
    aten.index_put_(made, list(indices), held)
    for dim in range(made.dim()):  # channels, most often, do not vary
        first = made.narrow(dim, 0, min(1, made.size(dim)))
        made = first if torch.equal(first.expand(made.shape), made) else made
    return made.expand(value.shape)


def _where(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    """A choice between tokens by a mask that is known; a mask that is not merges them."""
    mask, *choices = arguments
    chosen = [choice for choice in choices if isinstance(choice, torch.Tensor)]
    if len(chosen) < 2 or not hasattr(mask, "get"):
        return _pointwise(chosen, {}, value)
    try:
        mask = mask.get()
    except Unsupported:
        return _pointwise(chosen, {}, value)
    return torch.where(mask, *(compress(choice) for choice in chosen)).expand(value.shape)


def _repeat(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    kept, times = compress(_first(arguments)), list(arguments[1])
    kept = kept.view(*[1] * (len(times) - kept.dim()), *kept.shape)
    return kept.repeat([1 if size == 1 else n for size, n in zip(kept.shape, times, strict=True)]).expand(value.shape)


def _fresh(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    """A new tensor of another's shape holds none of its tokens."""
    return None


def _getitem(arguments: list[Any], options: dict[str, Any], value: Any) -> ShadowTree:
    return arguments[0][arguments[1]] if isinstance(arguments[0], list | tuple) else None


def _view_as_complex(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    return _first(arguments).select(-1, 0)


def _view_as_real(arguments: list[Any], options: dict[str, Any], value: Any) -> Shadow:
    return _first(arguments).unsqueeze(-1).expand(value.shape)


def _steering(argument: Any) -> Any:
    """Values of an argument that says what goes where."""
    if isinstance(argument, list | tuple):
        return [_steering(item) for item in argument]
    if hasattr(argument, "get"):
        return argument.get()
    if isinstance(argument, torch.Tensor):
        raise Unsupported("its indices come from the input tokens")
    return argument


def _move(target: Any, arguments: list[Any], options: dict[str, Any]) -> ShadowTree:
    """Do to the shadow what the operation does to the tensor."""
    rest = [_steering(argument) for argument in arguments[1:]]
    moved = target(_first(arguments), *rest, **{name: _steering(value) for name, value in options.items()})
    return list(moved) if isinstance(moved, list | tuple) else moved


_MOVES = frozenset(
    """permute transpose t mT mH numpy_T swapaxes movedim unsqueeze squeeze expand expand_as slice select narrow split
    split_with_sizes tensor_split chunk unbind flatten unflatten repeat_interleave tile gather take_along_dim flip roll
    pixel_shuffle pixel_unshuffle unfold diagonal""".split()
)
_STEERED = frozenset(
    """index index_select gather take_along_dim repeat_interleave index_put index_put_ index_copy index_copy_
    masked_scatter where""".split()
)
_REDUCTIONS = "mean sum amax amin max min var std prod any all".split()
_FRESH = "empty_like zeros_like ones_like full_like rand_like randn_like new_empty new_zeros new_ones new_full".split()
_UNMOVED = """scatter_add index_add to _to_copy contiguous clone detach alias dropout feature_dropout lift_fresh
    lift_fresh_copy type_as float half bfloat16 softmax _softmax log_softmax group_norm instance_norm batch_norm
    gelu silu""".split()

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(_UNMOVED, _same),
    **dict.fromkeys(_FRESH, _fresh),
    "getitem": _getitem,
    "copy_": _copy,
    "norm": _norm,
    "linalg_vector_norm": _norm,
    "einsum": _einsum,
    "index_put": _index_put,
    "index_put_": _index_put,
    "index_copy": _index_copy,
    "index_copy_": _index_copy,
    "masked_scatter": _masked_scatter,
    "where": _where,
    "pad_sequence": _pad_sequence,
    "scaled_dot_product_attention": _attention,
    "linear": _channels_mixed,
    "rms_norm": _layer_norm,
    "layer_norm": _layer_norm,
    "matmul": _matmul,
    "bmm": _matmul,
    "mm": _matmul,
    "addmm": _addmm,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv3d": _convolution,
    "convolution": _convolution,
    "embedding": _embedding,
    "cat": _concatenate,
    "concat": _concatenate,
    "stack": _stack,
    "index": _index,
    "index_select": _index_select,
    "repeat": _repeat,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "view": _view,
    "reshape": _view,
    "_unsafe_view": _view,
    "view_as": _view,
    "view_as_complex": _view_as_complex,
    "view_as_real": _view_as_real,
}
