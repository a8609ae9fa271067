"""Launching emitted kernels: from tensors to the driver's parameters, remembered for tensors seen before.

A launch is one call of the driver. What it needs (tensor maps, pointers) depends on addresses and strides only, and
PyTorch's allocator hands out the same addresses step after step, so it is made once and looked up afterwards.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from planner.codegen.spec.emitted import WORK_COUNTER, Emitted, ViewArgument
from planner.codegen.spec.launch_plan import HeadRouting
from planner.runtime.cuda.binary import Binary
from planner.runtime.cuda.driver import Function
from planner.runtime.cuda.parameters import (
    Packet,
    RoutingArguments,
    Table,
    Tensors,
    Workspace,
    why_not_boxes,
    why_not_rows,
)

MAX_LAUNCHES = 1024
"""Sets of addresses remembered per kernel; beyond that the ones made first are forgotten."""


class Kernel:
    """A compiled kernel on one device; call it with tensors of its spec."""

    def __init__(self, emitted: Emitted, binary: Binary, device: torch.device) -> None:
        with torch.cuda.device(device):
            torch.zeros(1, device=device)  # a call of the runtime makes the device's context this thread's
            self._function = Function(binary.code, binary.symbol, binary.warps, binary.shared, emitted.waits)
        self.emitted, self.binary, self.device, self._index = emitted, binary, device, device.index
        self._launches = OrderedDict[tuple[Any, ...], tuple[Callable[[], None], Packet]]()  # and what it points to
        self._workspaces = dict[tuple[int, int], Workspace]()
        self._tables = dict[HeadRouting, Table]()

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        scale: float,
        lse: torch.Tensor | None = None,
        key_mask: torch.Tensor | None = None,
        more: Tensors | None = None,
        routing_args: RoutingArguments | None = None,
    ) -> None:
        """Attend, and write ``out`` and ``lse``.

        query, out: (batch, heads, tokens, channels), key, value: (batch, key heads, keys, channels); channels are
        contiguous. lse: (batch, heads, tokens) float32. key_mask: (batch, keys) bool. more: further tensors by
        the names that the kernel has for them: means of groups, lists of keys.
        """
        tensors = {"q": query, "k": key, "v": value, "o": out}
        if lse is not None:
            tensors["lse"] = lse
        if key_mask is not None:
            tensors["key_mask"] = key_mask
        self.run(tensors | more if more else tensors, scale, routing_args)

    def run(self, tensors: Tensors, scale: float, routing_args: RoutingArguments | None = None) -> None:
        """Launch with tensors by the names that the kernel has for them, of the shapes that ``__call__`` takes."""
        stream = torch._C._cuda_getCurrentRawStream(self._index)
        seen = [(tensor.data_ptr(), tensor.stride()) for tensor in tensors.values()]
        noise = None
        if routing_args is not None:
            noise = routing_args.routing, 0 if routing_args.noise is None else routing_args.noise.data_ptr()
        place = (*seen, stream, scale, noise)
        found = self._launches.get(place)
        if found is None:
            table = None if routing_args is None else self._table(routing_args.routing)
            workspace = self._workspace(stream, 0 if table is None else table.partial_rows)
            packet = Packet(self.emitted, self.binary, tensors, workspace, scale, table, routing_args)
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

    def _table(self, routing: HeadRouting) -> Table:
        """Return a routing's table in device memory, written at its first launch, which no CUDA graph may capture."""
        found = self._tables.get(routing)
        if found is None:
            made = routing.table(self.emitted.spec)
            rows = torch.tensor(made.rows, dtype=torch.int32, device=self.device)
            levels = torch.tensor([*made.levels, 1.0], dtype=torch.float32, device=self.device)
            found = self._tables.setdefault(routing, Table(rows, levels, len(made.rows), made.partial_rows))
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
