"""Specialization: code under trace reads values that follow from the call, and its graph is that of these values.

A trace computes nothing: its tensors have shapes and no values. But masks and position ids are there, and what follows
from the inputs alone (how many words a prompt has, whether an image is passed) is computed from them when the code
reads it. What depends on weights is not: that would be running the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode, get_proxy_slot
from torch.fx.node import map_arg
from torch.overrides import TorchFunctionMode

from planner.capture.ops import Kind, info, is_overwritten, is_pure


def is_whole_number(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor, of any shape, holds whole numbers or truth values."""
    return not (tensor.is_floating_point() or tensor.is_complex())


def is_known(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor, of any shape, holds whole numbers or truth values that are really there."""
    return is_whole_number(tensor) and tensor.device.type != "meta"


def digest(tensor: torch.Tensor) -> bytes:
    """Return a digest of the values of a tensor of any shape."""
    values = tensor.detach().cpu().contiguous()
    return hashlib.blake2b(values.flatten().view(torch.uint8).numpy().tobytes()).digest()


def sources(nodes: Iterable[torch.fx.Node], through: Container[torch.fx.Node] | None = None) -> set[torch.fx.Node]:
    """Return nodes and all that they follow from; with ``through``, no further than through those nodes."""
    waiting, visited = list(nodes), set(nodes)
    while waiting:
        node = waiting.pop()
        parents = node.all_input_nodes if through is None or node in through else []
        waiting += [parent for parent in parents if parent not in visited]
        visited.update(parents)
    return visited


class SpecializedValues(TorchFunctionMode):
    """Answers reads of values that follow from ``inputs``, while entered inside a trace of make_fx.

    inputs: what the trace's placeholders stand for, in order; None for weights and for what is not there. A mask that
    is known and indexes becomes the indices where it is true.
    """

    def __init__(self, inputs: Sequence[torch.Tensor | None]) -> None:
        super().__init__()
        self._inputs = inputs
        self.guards = set[int]()
        """Positions of the inputs whose values were read."""
        self.steering = list[torch.fx.Node]()
        """Nodes of the values that were read and known."""
        self._values = dict[torch.fx.Node, Any]()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options, known = kwargs or {}, info(func)
        if known.kind is Kind.READ and args:
            tensor = self._known(args[0])
            if tensor is not None:
                with disable_proxy_modes_tracing():
                    return func(tensor, *args[1:], **options)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            indices = tuple(resolved for each in index for resolved in self._indices(each))
            args = (args[0], indices[0] if len(indices) == 1 else indices, *args[2:])
        elif known.takes_sizes:
            args = (args[0], *pytree.tree_map(self._integer, args[1:]))
        return func(*args, **options)

    def _indices(self, index: Any) -> tuple[Any, ...]:
        """Resolve one index: a mask to one tensor of indices for each of its dimensions, a slice to whole numbers."""
        if isinstance(index, slice):
            return (slice(*(self._integer(end) for end in (index.start, index.stop, index.step))),)
        if not (isinstance(index, torch.Tensor) and index.dtype == torch.bool and index.dim()):
            return (index,)
        mask = self._known(index)
        if mask is None:
            return (index,)
        with disable_proxy_modes_tracing():
            return mask.nonzero(as_tuple=True)

    def _integer(self, size: Any) -> Any:
        """Resolve a known tensor of no dimensions to its value; return anything else as it is."""
        scalar = self._known(size) if isinstance(size, torch.Tensor) and not size.dim() else None
        if scalar is None:
            return size
        with disable_proxy_modes_tracing():
            return int(scalar)

    def _known(self, tensor: Any) -> torch.Tensor | None:
        """Return a tensor with its values, None where they do not follow from the inputs alone."""
        if not isinstance(tensor, torch.Tensor) or tensor.device.type == "meta":
            return None
        mode = get_proxy_mode()
        proxy = None if mode is None else get_proxy_slot(tensor, mode.tracer, None, lambda slot: slot.proxy)
        if mode is None or proxy is None:
            return None if isinstance(tensor, FakeTensor) else tensor
        if isinstance(tensor, FakeTensor):
            try:
                with disable_proxy_modes_tracing(), torch.no_grad():
                    tensor = self._evaluated(proxy.node, mode.tracer.root)
            except _Unknown:
                return None
        self.steering.append(proxy.node)
        self.guards.update(_position(node) for node in sources([proxy.node]) if node.op == "placeholder")
        return tensor

    def _evaluated(self, node: torch.fx.Node, root: torch.nn.Module) -> Any:
        """Return the value of a node of the graph so far; raises _Unknown."""
        if is_overwritten(node):  # what it was computed from gives the value before the write
            raise _Unknown
        if node not in self._values:
            self._values[node] = self._evaluate(node, root)
        return self._values[node]

    def _evaluate(self, node: torch.fx.Node, root: torch.nn.Module) -> Any:
        """Run the traced graph as far as a node; raises _Unknown."""
        if node.op == "placeholder":
            value = self._inputs[_position(node)]
            if value is None:
                raise _Unknown
            return value
        if node.op == "get_attr":
            return getattr(root, str(node.target))
        if node.op != "call_function" or not is_pure(node.target):
            raise _Unknown
        args, options = map_arg((node.args, node.kwargs), lambda parent: self._evaluated(parent, root))
        target: Callable[..., Any] = node.target  # pyright: ignore[reportAssignmentType]
        return target(*args, **options)


def _position(placeholder: torch.fx.Node) -> int:
    """Return the position of a placeholder among a graph's, which come first."""
    return next(n for n, node in enumerate(placeholder.graph.nodes) if node is placeholder)


class _Unknown(Exception):
    """A value depends on weights, or on what was changed in place or drawn at random."""
