"""Operations that compute an element of several: products, convolutions, norms over channels, reductions."""

from __future__ import annotations

from typing import Any

import torch

from planner.capture.ops import Kind
from planner.provenance.rules.base import (
    OpCall,
    Shadow,
    Unsupported,
    compress,
    contract,
    shadow_of,
    varies_along,
)
from planner.provenance.rules.table import KIND_RULES, RULES


@RULES.register("linear")
def linear(call: OpCall) -> Shadow:
    """Mix the last dimension and keep the others."""
    return contract(call.first, [-1]).expand(call.shape)


@RULES.register("layer_norm")
@RULES.register("rms_norm")
def layer_norm(call: OpCall) -> Shadow:
    """Mix the dimensions that are normalized over and keep the others."""
    return contract(call.first, range(-len(call.arguments[1]), 0)).expand(call.shape)


@RULES.register("matmul")
@RULES.register("bmm")
@RULES.register("mm")
@RULES.register("scaled_dot_product_attention")
def matmul(call: OpCall) -> Shadow:
    """Keep the rows of the first factor; of no input where that is of none.

    So does attention: each query's result is its own, whatever it reads.
    """
    rows = shadow_of(call.arguments[0])
    return None if rows is None else contract(rows, [-1]).expand(call.shape)


@RULES.register("addmm")
def addmm(call: OpCall) -> Shadow:
    """Keep the rows of the left factor, which follows the bias."""
    return matmul(call.with_arguments(*call.arguments[1:]))


@RULES.register("einsum")
def einsum(call: OpCall) -> Shadow:
    """Keep the tokens of the first factor that has any."""
    equation = str(call.arguments[0]).replace(" ", "")
    inputs, arrow, output = equation.partition("->")
    if not arrow or "." in equation:
        raise Unsupported(f"equation {equation!r}")
    for labels, factor in zip(inputs.split(","), call.arguments[1], strict=True):
        if isinstance(factor, torch.Tensor) and len(set(labels)) == len(labels):
            return _contracted(factor, labels, output).expand(call.shape)
    return None


def _contracted(factor: torch.Tensor, labels: str, output: str) -> torch.Tensor:
    """Return a factor's shadow with its dimensions summed and ordered as the output's labels say, of size 1 for those
    that it lacks."""
    summed = [dim for dim, label in enumerate(labels) if label not in output]
    kept = sorted((dim for dim, label in enumerate(labels) if label in output), key=lambda d: output.index(labels[d]))
    shadow = contract(factor, summed).permute(*kept, *summed)
    shadow = shadow.view(shadow.shape[: len(kept)])
    for dim, label in enumerate(output):
        shadow = shadow if label in labels else shadow.unsqueeze(dim)
    return shadow


@RULES.register("conv1d")
@RULES.register("conv2d")
@RULES.register("conv3d")
@RULES.register("convolution")
def convolution(call: OpCall) -> Shadow:
    """Keep what was in the middle of each window: a patch embedding keeps one pixel a patch."""
    kernel = call.arguments[1].shape[2:]
    stride, padding, dilation = (
        _per_dimension(call.argument(position, name, default), len(kernel))
        for position, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    shadow = contract(call.first, [1])
    for axis, (width, step, before, spread) in enumerate(zip(kernel, stride, padding, dilation, strict=True)):
        middle = torch.arange(call.shape[axis + 2]) * step + spread * (width - 1) // 2 - before
        if varies_along(shadow, axis + 2):
            shadow = shadow.index_select(axis + 2, middle.clamp(0, shadow.size(axis + 2) - 1))
    return compress(shadow).expand(call.shape)


def _per_dimension(setting: Any, dimensions: int) -> list[int]:
    """Return a convolution's stride, padding or dilation for each dimension of its windows."""
    if isinstance(setting, str):
        raise Unsupported(f"padding={setting!r}")
    each = list(setting) if isinstance(setting, list | tuple) else [setting]
    return each * dimensions if len(each) == 1 else each


@KIND_RULES.register(Kind.REDUCTION)
def reduction(call: OpCall) -> Shadow:
    """Keep provenance along a reduced dimension that holds one token; otherwise the result is of no token."""
    dims, keepdim = call.argument(1, "dim"), call.argument(2, "keepdim", False)
    shadow = call.first
    if dims is None or isinstance(dims, bool) or not isinstance(call.value, torch.Tensor):
        return None
    dims = [dims] if isinstance(dims, int) else list(dims)
    if any(varies_along(shadow, dim) for dim in dims):
        return None
    shadow = contract(shadow, dims)
    for dim in sorted((dim % shadow.dim() for dim in dims), reverse=True):
        shadow = shadow if keepdim else shadow.squeeze(dim)
    return shadow.expand(call.shape)


@RULES.register("norm")
@RULES.register("linalg_vector_norm")
def norm(call: OpCall) -> Shadow:
    """Reduce like a sum; the second argument is the order of the norm."""
    without_order = (call.arguments[0], *call.arguments[2:])
    return reduction(OpCall(call.target, without_order, call.options, call.value))
