"""Launching emitted kernels: from tensors to the driver's parameters, remembered for tensors seen before.

A launch is one call of the driver. What it needs (tensor maps, pointers) depends on addresses and strides only, and
PyTorch's allocator hands out the same addresses step after step, so it is made once and looked up afterwards.
"""

from __future__ import annotations

import ctypes
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from planner.codegen.spec.emitted import WORK_COUNTER, Emitted, ViewArgument
from planner.codegen.spec.launch_plan import HeadRouting
from planner.codegen.tiling.boxes import View
from planner.runtime.cuda.binary import Binary
from planner.runtime.cuda.driver import Function, encode_tensor_map

MAX_LAUNCHES = 1024
"""Sets of addresses remembered per kernel; beyond that the ones made first are forgotten."""

_STRIDES = {"batch": 0, "head": 1, "token": 2}

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class RoutingArguments:
    """Arguments that a has_head_table kernel reads on the device, so that no host waits: its table and the noise level.

    noise: one float32 on the device; None where nothing depends on it.
    """

    routing: HeadRouting
    noise: torch.Tensor | None = None


@dataclass(frozen=True)
class _Table:
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


class Kernel:
    """A compiled kernel on one device; call it with tensors of its spec."""

    def __init__(self, emitted: Emitted, binary: Binary, device: torch.device) -> None:
        with torch.cuda.device(device):
            torch.zeros(1, device=device)  # a call of the runtime makes the device's context this thread's
            self._function = Function(binary.code, binary.symbol, binary.warps, binary.shared, emitted.waits)
        self.emitted, self.binary, self.device, self._index = emitted, binary, device, device.index
        self._launches = OrderedDict[tuple[Any, ...], tuple[Callable[[], None], _Packet]]()  # and what it points to
        self._workspaces = dict[tuple[int, int], Workspace]()
        self._tables = dict[HeadRouting, _Table]()

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        scale: float,
        lse: torch.Tensor | None = None,
        key_mask: torch.Tensor | None = None,
        means: Tensors | None = None,
        routing_args: RoutingArguments | None = None,
    ) -> None:
        """Attend, and write ``out`` and ``lse``.

        query, out: (batch, heads, tokens, channels), key, value: (batch, key heads, keys, channels); channels are
        contiguous. lse: (batch, heads, tokens) float32. key_mask: (batch, keys) bool. means: the tensors that the
        kernels of means have written, by this kernel's names for them.
        """
        tensors = {"q": query, "k": key, "v": value, "o": out}
        if lse is not None:
            tensors["lse"] = lse
        if key_mask is not None:
            tensors["key_mask"] = key_mask
        self.run(tensors | means if means else tensors, scale, routing_args)

    def run(self, tensors: Tensors, scale: float, routing_args: RoutingArguments | None = None) -> None:
        """Launch with tensors by the names that the kernel has for them, of the shapes that ``__call__`` takes."""
        stream = torch._C._cuda_getCurrentRawStream(self._index)
        seen = [(tensor.data_ptr(), tensor.stride()) for tensor in tensors.values()]
        noise = (
            None
            if routing_args is None
            else (
                routing_args.routing,
                0 if routing_args.noise is None else routing_args.noise.data_ptr(),
            )
        )
        place = (*seen, stream, scale, noise)
        found = self._launches.get(place)
        if found is None:
            table = None if routing_args is None else self._table(routing_args.routing)
            workspace = self._workspace(stream, 0 if table is None else table.partial_rows)
            packet = _Packet(self.emitted, self.binary, tensors, workspace, scale, table, routing_args)
            found = self._function.launcher(self.emitted.grid, stream, packet.pointers), packet
            if not torch.cuda.is_current_stream_capturing():
                self._launches[place] = found
                if len(self._launches) > MAX_LAUNCHES:
                    self._launches.popitem(last=False)
        launch, _ = found
        if torch._C._cuda_getDevice() == self._index:
            launch()
        else:
            with torch.cuda.device(self._index):
                launch()

    def why_not(self, tensor: torch.Tensor) -> str | None:
        """Say why the kernel cannot read a tensor (batch, heads, tokens, channels) by its strides, None if it can."""
        if any(isinstance(argument, ViewArgument) for argument in self.emitted.arguments):
            return why_not_boxes(tensor, self.emitted.spec.head_block)
        return why_not_rows(tensor)

    def _table(self, routing: HeadRouting) -> _Table:
        """Return a routing's table in device memory, written at its first launch, which no CUDA graph may capture."""
        found = self._tables.get(routing)
        if found is None:
            made = routing.table(self.emitted.spec)
            rows = torch.tensor(made.rows, dtype=torch.int32, device=self.device)
            levels = torch.tensor([*made.levels, 1.0], dtype=torch.float32, device=self.device)
            found = self._tables.setdefault(routing, _Table(rows, levels, len(made.rows), made.partial_rows))
        return found

    def _workspace(self, stream: int, of_table: int) -> Workspace | None:
        """Return the workspace of a stream; its counters are zero before and after each launch.

        A captured graph gets memory of its own.
        """
        emitted = self.emitted
        rows = max(emitted.partial_rows, of_table)
        if not rows and WORK_COUNTER not in emitted.arguments:
            return None
        is_capturing = torch.cuda.is_current_stream_capturing()
        if (stream, rows) in self._workspaces and not is_capturing:
            return self._workspaces[stream, rows]
        made = Workspace(
            torch.empty(rows * emitted.spec.head_block, dtype=torch.float32, device=self.device),
            torch.empty(rows, dtype=torch.float32, device=self.device),
            torch.zeros(emitted.arrivals, dtype=torch.int32, device=self.device),
            torch.zeros(1 + emitted.retry_flags, dtype=torch.int32, device=self.device),
        )
        if not is_capturing:
            self._workspaces[stream, rows] = made
        return made


class _Packet:
    """The parameters of one launch: values, and pointers to them as the driver wants them."""

    def __init__(
        self,
        emitted: Emitted,
        binary: Binary,
        tensors: Tensors,
        workspace: Workspace | None,
        scale: float,
        table: _Table | None = None,
        routing_args: RoutingArguments | None = None,
    ) -> None:
        self._workspace, self._table = workspace, table
        made = list(_parameters(emitted, binary, tensors, workspace, scale, table, routing_args))
        self._values, kinds = [value for value, _ in made], tuple(kind for _, kind in made)
        if kinds != binary.parameters:
            raise AssertionError(f"the kernel takes {binary.parameters}, not {kinds}")
        addresses = [v[0] if isinstance(v, tuple) else v for v in self._values]
        self.pointers = (ctypes.c_void_p * len(addresses))(*(ctypes.addressof(value) for value in addresses))


def _parameters(
    emitted: Emitted,
    binary: Binary,
    tensors: Tensors,
    workspace: Workspace | None,
    scale: float,
    table: _Table | None,
    routing_args: RoutingArguments | None,
) -> Iterator[tuple[Any, str]]:
    """Yield the (value, PTX type) of each parameter."""
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
    """Tell whether batch and heads of a tensor (batch, heads, tokens, channels) are one axis for TMA."""
    return tensor.shape[0] == 1 or tensor.stride(0) == tensor.shape[1] * tensor.stride(1)


def heads_are_last(tensor: torch.Tensor) -> bool:
    """Tell whether heads of a tensor (batch, heads, tokens, channels) lie next to channels: both are then one axis."""
    return tensor.stride(1) == tensor.shape[3]


def _view(tensor: torch.Tensor, view: View, head_dim: int) -> tuple[list[int], list[int], int]:
    """Return (sizes, strides, address) of a tensor's tokens through a view, heads in the first axis or in the last."""
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
    """Say why rows of a tensor (batch, heads, tokens, channels) cannot be read 16 bytes at a time, None if they can."""
    width = tensor.element_size()
    if tensor.stride(3) != 1:
        return "its channels are not contiguous"
    strides = [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1 and stride != 1]
    if tensor.data_ptr() % 16 or any(stride * width % 16 for stride in strides):
        return "its address or its strides are no multiples of 16 bytes"
    return None


def why_not_boxes(tensor: torch.Tensor, head_block: int) -> str | None:
    """Say why TMA cannot fetch boxes of tokens of a tensor (batch, heads, tokens, channels), None if it can."""
    reason = why_not_rows(tensor)
    if reason is not None:
        return reason
    if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        return "it is expanded: some of its rows are the same memory"
    if heads_merge(tensor) or (heads_are_last(tensor) and tensor.shape[3] == head_block):
        return None
    return "its batch and its heads are not one axis, nor its heads and its channels"
