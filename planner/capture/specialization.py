"""Known values: what code under trace may read, so that branches and lengths that depend on inputs are followed.

A trace computes nothing: its tensors have shapes and no values. But masks and position ids are there, and what follows
from the inputs alone (how many words a prompt has, whether a picture was given) is worked out from them when the code
asks. What depends on weights is not: that would be running the model.
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

from planner.capture.ops import Kind, info, is_pure


def is_whole_number(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds whole numbers or truth values."""
    return not (tensor.is_floating_point() or tensor.is_complex())


def is_known(tensor: torch.Tensor) -> bool:
    """Whether a tensor's values may steer the graph: whole numbers or truth values that are really there."""
    return is_whole_number(tensor) and tensor.device.type != "meta"


def digest(tensor: torch.Tensor) -> bytes:
    """A digest of a tensor's values."""
    values = tensor.detach().cpu().contiguous()
    return hashlib.blake2b(values.flatten().view(torch.uint8).numpy().tobytes()).digest()


def sources(nodes: Iterable[torch.fx.Node], through: Container[torch.fx.Node] | None = None) -> set[torch.fx.Node]:
    """Nodes and all that they follow from; if it is given, no further than through some nodes."""
    waiting, seen = list(nodes), set(nodes)
    while waiting:
        node = waiting.pop()
        parents = node.all_input_nodes if through is None or node in through else []
        waiting += [parent for parent in parents if parent not in seen]
        seen.update(parents)
    return seen


class KnownValues(TorchFunctionMode):
    """While entered inside a trace of make_fx, reads of values that follow from ``inputs`` give them.

    inputs: what the trace's placeholders stand for, in order; None for weights and for what is not there. A mask that
    is known and indexes becomes the places where it is true.
    """

    def __init__(self, inputs: Sequence[torch.Tensor | None]) -> None:
        super().__init__()
        self._inputs = inputs
        self.read = set[int]()
        """Places of the inputs whose values were asked for."""
        self.asked = list[torch.fx.Node]()
        """What stands for the values that were asked for and known."""
        self._values = dict[torch.fx.Node, Any]()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if info(func).kind is Kind.READ and args:
            known = self._known(args[0])
            if known is not None:
                with disable_proxy_modes_tracing():
                    return func(known, *args[1:], **options)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            places = tuple(place for each in index for place in self._places(each))
            args = (args[0], places[0] if len(places) == 1 else places, *args[2:])
        elif info(func).takes_sizes:
            args = (args[0], *pytree.tree_map(self._number, args[1:]))
        return func(*args, **options)

    def _places(self, index: Any) -> tuple[Any, ...]:
        """A mask as the places where it is true, one tensor for each of its dimensions; the ends of a slice as ints."""
        if isinstance(index, slice):
            return (slice(*(self._number(end) for end in (index.start, index.stop, index.step))),)
        if not (isinstance(index, torch.Tensor) and index.dtype == torch.bool and index.dim()):
            return (index,)
        known = self._known(index)
        if known is None:
            return (index,)
        with disable_proxy_modes_tracing():
            return known.nonzero(as_tuple=True)

    def _number(self, end: Any) -> Any:
        known = self._known(end) if isinstance(end, torch.Tensor) and not end.dim() else None
        if known is None:
            return end
        with disable_proxy_modes_tracing():
            return int(known)

    def _known(self, tensor: Any) -> torch.Tensor | None:
        """A tensor with values, None where they do not follow from the inputs alone."""
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
            except _NotKnown:
                return None
        self.asked.append(proxy.node)
        self.read.update(_place(node) for node in sources([proxy.node]) if node.op == "placeholder")
        return tensor

    def _evaluated(self, node: torch.fx.Node, root: torch.nn.Module) -> Any:
        if node not in self._values:
            self._values[node] = self._evaluate(node, root)
        return self._values[node]

    def _evaluate(self, node: torch.fx.Node, root: torch.nn.Module) -> Any:
        if node.op == "placeholder":
            value = self._inputs[_place(node)]
            if value is None:
                raise _NotKnown
            return value
        if node.op == "get_attr":
            return getattr(root, str(node.target))
        if node.op != "call_function" or not is_pure(node.target):
            raise _NotKnown
        args, options = map_arg((node.args, node.kwargs), lambda parent: self._evaluated(parent, root))
        target: Callable[..., Any] = node.target  # pyright: ignore[reportAssignmentType]
        return target(*args, **options)


def _place(placeholder: torch.fx.Node) -> int:
    return next(n for n, node in enumerate(placeholder.graph.nodes) if node is placeholder)


class _NotKnown(Exception):
    """A value depends on weights, or on what was changed in place or drawn at random."""
