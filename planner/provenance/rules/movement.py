"""Operations that move elements: what they do to a tensor is done to its shadow."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from planner.capture.ops import Kind, op_name
from planner.provenance.rules.base import (
    CONDITIONING_ID,
    MAX_ELEMENTS,
    UNKNOWN,
    OpCall,
    Shadow,
    ShadowTree,
    Unsupported,
    compress,
    merge,
    resized,
    steering,
    unknown,
)
from planner.provenance.rules.table import KIND_RULES, RULES


@KIND_RULES.register(Kind.MOVEMENT)
def move(call: OpCall) -> ShadowTree:
    """Do to the shadow what the operation does to the tensor."""
    further = [steering(argument) for argument in call.arguments[1:]]
    options = {name: steering(option) for name, option in call.options.items()}
    moved = call.target(call.first, *further, **options)
    return list(moved) if isinstance(moved, list | tuple) else moved


@RULES.register("getitem")
def getitem(call: OpCall) -> ShadowTree:
    """Take one of several results."""
    results, index = call.arguments
    return results[index] if isinstance(results, list | tuple) else None


@RULES.register("view")
@RULES.register("reshape")
@RULES.register("_unsafe_view")
@RULES.register("view_as")
def view(call: OpCall) -> Shadow:
    """Give the shadow the result's shape, written out where strides do not allow a view."""
    try:
        return call.first.view(call.shape)
    except RuntimeError:
        if call.shape.numel() > MAX_ELEMENTS:
            raise Unsupported(f"its shadow would hold {call.shape.numel()} elements") from None
        return call.first.reshape(call.shape)


@RULES.register("view_as_complex")
def view_as_complex(call: OpCall) -> Shadow:
    """Take the real part's token for both parts."""
    return call.first.select(-1, 0)


@RULES.register("view_as_real")
def view_as_real(call: OpCall) -> Shadow:
    """Give both parts the token of the complex number."""
    return call.first.unsqueeze(-1).expand(call.shape)


@RULES.register("repeat")
def repeat(call: OpCall) -> Shadow:
    """Repeat the shadow along the dimensions in which it varies."""
    kept, times = compress(call.first), list(call.arguments[1])
    kept = kept.view(*[1] * (len(times) - kept.dim()), *kept.shape)
    return kept.repeat([1 if size == 1 else n for size, n in zip(kept.shape, times, strict=True)]).expand(call.shape)


@RULES.register("pad")
@RULES.register("constant_pad_nd")
def pad(call: OpCall) -> Shadow:
    """Surround the tokens with unknown ones."""
    shadow, widths = compress(call.first), list(call.arguments[1])
    for from_end in range(len(widths) // 2):
        before, after, dim = widths[2 * from_end], widths[2 * from_end + 1], shadow.dim() - 1 - from_end
        if before or after:
            shadow = shadow.expand(resized(shadow.shape, dim, call.first.size(dim)))
    return F.pad(shadow, widths, value=UNKNOWN).expand(call.shape)


@RULES.register("pad_sequence")
def pad_sequence(call: OpCall) -> Shadow:
    """Put sequences one below the other, the short ones followed by tokens of no input."""
    batch = torch.full(call.shape, CONDITIONING_ID)
    rows = batch if call.argument(1, "batch_first", False) else batch.transpose(0, 1)
    for row, sequence in zip(rows, call.arguments[0], strict=True):
        if isinstance(sequence, torch.Tensor):
            row[: len(sequence)] = sequence
    return batch


@RULES.register("cat")
@RULES.register("concat")
def concatenate(call: OpCall) -> Shadow:
    """Put shadows one behind the other along a dimension."""
    rank = len(call.shape)
    return _concatenated([each for each in call.arguments[0] if len(each.shape) == rank], call)


@RULES.register("stack")
def stack(call: OpCall) -> Shadow:
    """Put shadows one behind the other along a new dimension."""
    rank = len(call.shape)
    dim = call.argument(1, "dim", 0) % rank
    return _concatenated(
        [
            x.unsqueeze(dim) if isinstance(x, torch.Tensor) else torch.full([1] * rank, UNKNOWN)
            for x in call.arguments[0]
        ],
        call,
    )


def _concatenated(shadows: list[Any], call: OpCall) -> torch.Tensor:
    """Join shadows of the result's rank, or what stands for tensors without one, along the call's dimension."""
    rank = len(call.shape)
    dim = call.argument(1, "dim", 0) % rank
    small = [compress(x) if isinstance(x, torch.Tensor) else torch.full([1] * rank, UNKNOWN) for x in shadows]
    if all(each.size(dim) == 1 and torch.equal(each, small[0]) for each in small):
        return small[0].expand(call.shape)
    small = [each.expand(resized(each.shape, dim, x.shape[dim])) for each, x in zip(small, shadows, strict=True)]
    shape = torch.broadcast_shapes(*(resized(each.shape, dim, 1) for each in small))
    return torch.cat([each.expand(resized(shape, dim, each.size(dim))) for each in small], dim).expand(call.shape)


def write_back(target: Any, arguments: list[Any], written: ShadowTree, whole: torch.Tensor) -> Shadow:
    """Return the shadow of a whole tensor after a view of it was overwritten; unknown for most views.

    target, arguments: the operation that gave the view, a slice or a selection. What was not overwritten keeps its
    shadow, or is of no input. Along a sliced dimension in which the new shadow does not vary, the rest of the tensor,
    if unknown, takes it too: a rotation that writes odd and even channels keeps its tokens.
    """
    name = op_name(target)
    if name not in ("slice", "select") or not isinstance(written, torch.Tensor):
        return unknown(whole)
    old = arguments[0]
    elsewhere = UNKNOWN if isinstance(old, torch.Tensor) else CONDITIONING_ID
    new, dim = compress(written), (arguments[1] if len(arguments) > 1 else 0) % len(whole.shape)
    if name == "select" or new.size(dim) > 1:
        after = dim if name == "select" else dim + 1
        filled = torch.full([*new.shape[:dim], whole.shape[dim], *new.shape[after:]], elsewhere)
        target(filled, *arguments[1:]).copy_(new)
        new = filled
    return (merge(compress(old), new) if isinstance(old, torch.Tensor) else new).expand(whole.shape)
