"""The parameters of a launch: from tensors and a kernel's arguments to what the driver takes.

An argument's name says what it is: ``q_batch`` a stride, ``q_last`` how heads lie, ``table`` or ``noise`` what routes
heads, ``partials`` or ``work_counter`` a part of the workspace, and any other the tensor of that name.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from planner.codegen.spec.emitted import Emitted, ViewArgument
from planner.codegen.spec.launch_plan import HeadRouting
from planner.codegen.tiling.boxes import View
from planner.runtime.cuda.binary import Binary
from planner.runtime.cuda.driver import encode_tensor_map

_STRIDES = {"batch": 0, "head": 1, "token": 2}

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class RoutingArguments:
    """What a has_head_table kernel looks at when it runs, so that no host waits for it: its table and the noise level.

    noise: one float32 on the device; None where nothing depends on it.
    """

    routing: HeadRouting
    noise: torch.Tensor | None = None


@dataclass(frozen=True)
class Table:
    """A table in device memory."""

    rows: torch.Tensor
    levels: torch.Tensor
    ranges: int
    partial_rows: int


@dataclass(frozen=True)
class Workspace:
    """Device memory that launches on one stream share: partials of the rows of global queries, and counters."""

    partials: torch.Tensor
    partial_lse: torch.Tensor
    arrivals: torch.Tensor
    work_counter: torch.Tensor


class Packet:
    """The parameters of one launch: values, and pointers to them as the driver wants them."""

    def __init__(
        self,
        emitted: Emitted,
        binary: Binary,
        tensors: Tensors,
        workspace: Workspace | None,
        scale: float,
        table: Table | None = None,
        routing_args: RoutingArguments | None = None,
    ) -> None:
        self._workspace, self._table = workspace, table
        values = list(parameters(emitted, binary, tensors, workspace, scale, table, routing_args))
        self._values, kinds = [value for value, _ in values], tuple(kind for _, kind in values)
        if kinds != binary.parameters:
            raise AssertionError(f"the kernel takes {binary.parameters}, not {kinds}")
        addresses = [v[0] if isinstance(v, tuple) else v for v in self._values]
        self.pointers = (ctypes.c_void_p * len(addresses))(*(ctypes.addressof(value) for value in addresses))


def parameters(
    emitted: Emitted,
    binary: Binary,
    tensors: Tensors,
    workspace: Workspace | None,
    scale: float,
    table: Table | None,
    routing_args: RoutingArguments | None,
) -> Iterator[tuple[Any, str]]:
    """Yield the value and the PTX type of each parameter, in order; AssertionError for an argument of another name."""
    spec = emitted.spec
    maps = iter(binary.tensor_maps)
    for argument in emitted.arguments:
        name = argument.name
        if isinstance(argument, ViewArgument):
            swizzle, box = next(maps)
            sizes, strides, address = _view(tensors[argument.tensor], argument.view, spec.head_dim)
            yield encode_tensor_map(address, spec.dtypes.of(argument.tensor), sizes, strides, box, swizzle), "b8"
            yield from ((ctypes.c_uint32(size), "u32") for size in sizes)
            yield from ((ctypes.c_uint64(stride), "u64") for stride in strides)
        elif name.endswith("_last"):
            yield ctypes.c_uint32(int(not heads_merge(tensors[name[0]]))), "u32"
        elif name[2:] in _STRIDES:
            yield ctypes.c_uint64(tensors[name[0]].stride(_STRIDES[name[2:]])), "u64"
        elif name == "scale_log2":
            yield ctypes.c_float(scale / math.log(2)), "f32"
        elif name == "bias_batch":
            yield ctypes.c_uint64(tensors["mean_bias"].stride(0)), "u64"
        elif table is not None and name == "table":
            yield ctypes.c_uint64(table.rows.data_ptr()), "u64"
        elif table is not None and name == "levels":
            yield ctypes.c_uint64(table.levels.data_ptr()), "u64"
        elif table is not None and name == "ranges":
            yield ctypes.c_uint32(table.ranges), "u32"
        elif routing_args is not None and name == "noise":
            yield ctypes.c_uint64(0 if routing_args.noise is None else routing_args.noise.data_ptr()), "u64"
        elif name in tensors:
            yield ctypes.c_uint64(tensors[name].data_ptr()), "u64"
        elif argument.signature.startswith("*"):
            yield ctypes.c_uint64(getattr(workspace, name).data_ptr()), "u64"
        else:
            raise AssertionError(f"nothing is known of the argument {name}")
    yield ctypes.c_uint64(0), "u64"
    yield ctypes.c_uint64(0), "u64"


def heads_merge(tensor: torch.Tensor) -> bool:
    """Tell whether batch and heads of a tensor (batch, heads, tokens, channels) are one axis of a tensor map."""
    return tensor.shape[0] == 1 or tensor.stride(0) == tensor.shape[1] * tensor.stride(1)


def heads_are_last(tensor: torch.Tensor) -> bool:
    """Tell whether the heads of a tensor (batch, heads, tokens, channels) lie beside its channels, as one axis."""
    return tensor.stride(1) == tensor.shape[3]


def _view(tensor: torch.Tensor, view: View, head_dim: int) -> tuple[list[int], list[int], int]:
    """(sizes, strides, address) of a tensor's tokens through a view, heads in the first axis or in the last."""
    batch, heads, _, _ = tensor.shape
    of_batch, of_head, of_token, _ = tensor.stride()
    address = tensor.data_ptr() + view.origin * of_token * tensor.element_size()
    axes = [(size, stride * of_token) for size, stride in view.axes]
    if heads_merge(tensor):
        axes, channels = [(batch * heads, of_head), *axes], head_dim
    else:
        axes, channels = [(batch, of_batch), *axes], heads * head_dim
    # An axis of one element may have any stride, and the driver takes only some.
    strides = [stride if size > 1 else of_token for size, stride in axes]
    return [*(size for size, _ in axes), channels], [*strides, 1], address


def why_not_rows(tensor: torch.Tensor) -> str | None:
    """Say why rows of a tensor (batch, heads, tokens, channels) cannot be read 16 bytes at a time; None if they can."""
    width = tensor.element_size()
    if tensor.stride(3) != 1:
        return "its channels are not contiguous"
    strides = [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1 and stride != 1]
    if tensor.data_ptr() % 16 or any(stride * width % 16 for stride in strides):
        return "its address or its strides are no multiples of 16 bytes"
    return None


def why_not_boxes(tensor: torch.Tensor, head_block: int) -> str | None:
    """Say why TMA cannot load boxes of a tensor's tokens (batch, heads, tokens, channels); None if it can."""
    reason = why_not_rows(tensor)
    if reason is not None:
        return reason
    if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        return "it is expanded: some of its rows are the same memory"
    if heads_merge(tensor) or (heads_are_last(tensor) and tensor.shape[3] == head_block):
        return None
    return "its batch and its heads are not one axis, nor its heads and its channels"
