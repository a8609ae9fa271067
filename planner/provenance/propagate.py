"""Provenance: which input token every element of every tensor came from, and so where the tokens of a sequence sit.

Beside each tensor of a captured graph goes its shadow (see rules/base.py), None for weights, timesteps, masks and
pooled text. Every shadow is memoized by what it was computed from, so a layer that repeats costs nothing: time and
memory are those of one layer of each kind, O(tokens).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from planner.capture.call import Call, is_same
from planner.capture.ops import Kind, find_rule, info, is_in_place, is_overwritten, is_pure, is_view, op_name
from planner.capture.specialization import is_known
from planner.capture.trace import Capture
from planner.errors import MalformedValue
from planner.provenance.rules.base import (
    CONDITIONING_ID,
    SOURCE_STRIDE,
    OpCall,
    Shadow,
    ShadowTree,
    Unsupported,
    compress,
    unknown,
)
from planner.provenance.rules.movement import write_back
from planner.provenance.rules.table import KIND_RULES, RULES

CHANNEL_STRIDE = 2**20
"""Ids of a (tokens, channels) input differ by so many from token to token, however many channels it has, so that inputs
with the same number of tokens have the same ids."""


@dataclass(frozen=True)
class Source:
    """An input whose elements have ids; ``shape`` leaves out the batch dimension."""

    name: str
    shape: tuple[int, ...]

    @property
    def id_shape(self) -> tuple[int, ...]:
        """The shape that ids count through."""
        return (self.shape[0], CHANNEL_STRIDE) if len(self.shape) == 2 else self.shape

    def ids(self) -> torch.Tensor:
        """Return the ids of the elements, from 0, in the source's shape."""
        if len(self.shape) != 2:
            return torch.arange(math.prod(self.shape)).view(self.shape)
        return torch.arange(self.shape[0])[:, None] * CHANNEL_STRIDE + torch.arange(self.shape[1])


LEARNED = Source("learned", ())
"""Tokens that are weights of the model: class and register tokens."""

CONDITIONING = Source("conditioning", ())
"""Tokens made of no input's: of the timestep, of pooled text, or zeros."""


@dataclass
class Provenance:
    """Shadows of all nodes of a graph, and what stood in the way of knowing more.

    ordered: positions of the sources over whose tokens the model convolves, so that they lie on a line in their order.
    unhandled: how often an operation had no rule, or a case that its rule does not know. guards: arguments of which
    values, not only shapes, were read; the shadows hold while these stay the same.
    """

    sources: list[Source]
    ordered: set[int] = field(default_factory=set[int])
    shadows: dict[torch.fx.Node, ShadowTree] = field(default_factory=dict[torch.fx.Node, ShadowTree])
    unhandled: Counter[str] = field(default_factory=Counter[str])
    guards: set[str] = field(default_factory=set[str])

    def of(self, argument: Any) -> ShadowTree:
        """Return the shadow of a node, or of a nest of nodes; None where there is none."""
        return map_arg(argument, self.shadows.get)


@dataclass
class Memory:
    """Shadows of the outputs of a call's earlier graphs, from which graphs after a graph break go on."""

    sources: list[Source] = field(default_factory=lambda: [LEARNED, CONDITIONING])
    shadows: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)


def trace_provenance(capture: Capture, call: Call, memory: Memory | None = None) -> Provenance:
    """Follow the input tokens of a call through a captured graph; raises MalformedValue for a faulty rule."""
    memory = memory or Memory()
    provenance = Provenance(memory.sources)
    provenance.guards.update(
        name for tensor in capture.guards if is_known(tensor) for name, other in call.tensors if is_same(tensor, other)
    )
    walker = _Walker(provenance, capture, call, memory)
    for node in capture.graph.graph.nodes:
        provenance.shadows[node] = walker.shadow(node)
    return provenance


class _Walker:
    """Visits the nodes of a graph in order and finds the shadow of each."""

    def __init__(self, provenance: Provenance, capture: Capture, call: Call, memory: Memory) -> None:
        self.provenance = provenance
        self.capture = capture
        self.named = call.tensors
        self.memory = memory
        self.inputs = iter(capture.inputs)
        self.known = dict[torch.fx.Node, Any]()
        self.names = dict[torch.fx.Node, str]()
        self.constant = set[torch.fx.Node]()
        self.memo = dict[Any, tuple[ShadowTree, Any]]()
        self.bases = dict[torch.fx.Node, torch.fx.Node]()
        self.views = dict[torch.fx.Node, list[torch.fx.Node]]()

    def shadow(self, node: torch.fx.Node) -> ShadowTree:
        self._record_base(node)
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op == "get_attr":
            self.constant.add(node)
            self.known[node] = _attribute(self.capture.graph, str(node.target))
            return None
        if node.op != "call_function":
            return None
        if node.all_input_nodes and all(parent in self.constant for parent in node.all_input_nodes):
            self.constant.add(node)
        return self._call(node)

    def _placeholder(self, node: torch.fx.Node) -> Shadow:
        tensor = next(self.inputs)
        if tensor is None:
            return None
        if tensor in self.memory.shadows:
            return self.memory.shadows[tensor]
        name = next((name for name, other in self.named if is_same(tensor, other)), None)
        if is_known(tensor) and name is not None:
            self.known[node] = tensor
            self.names[node] = name
        if name is None:
            self.constant.add(node)
            return None
        if not tensor.is_floating_point() or tensor.dim() < 3:
            return None
        source = Source(name, tuple(tensor.shape[1:]))
        if source not in self.provenance.sources:
            self.provenance.sources.append(source)
        first = self.provenance.sources.index(source) * SOURCE_STRIDE
        return (first + source.ids())[None].expand(tensor.shape)

    def _call(self, node: torch.fx.Node) -> ShadowTree:
        if not any(self.provenance.shadows[parent] is not None for parent in node.all_input_nodes):
            return None
        arguments = [self._argument(node, argument) for argument in node.args]
        options = {name: self._argument(node, argument) for name, argument in node.kwargs.items()}
        call = OpCall(node.target, arguments, options, node.meta.get("val"))
        self._record_order(call)
        key = (node.target, _fingerprint([arguments, options, call.value]))
        if key not in self.memo:
            # The arguments are kept with the result: while they live no other shadow can have their address.
            self.memo[key] = self._apply(call), call
        result, _ = self.memo[key]
        if is_in_place(node.target):
            self._write_through(node, result)
        return result

    def _record_order(self, call: OpCall) -> None:
        """Record the sources that a convolution over (batch, channels, tokens) takes for ordered."""
        if info(call.target).kind is Kind.CONVOLUTION and isinstance(call.arguments[0], torch.Tensor):
            tokens = call.arguments[0]
            if tokens.dim() == 3:
                self.provenance.ordered.update((compress(tokens) // SOURCE_STRIDE).unique().tolist())

    def _apply(self, call: OpCall) -> ShadowTree:
        rule, name = find_rule(call.target, RULES, KIND_RULES), op_name(call.target)
        if rule is None:
            self.provenance.unhandled[name] += 1
            return unknown(call.value)
        try:
            shadow = rule(call)
        except (Unsupported, RuntimeError, IndexError) as reason:
            self.provenance.unhandled[f"{name}: {str(reason).partition(chr(10))[0]}"] += 1
            return unknown(call.value)
        if isinstance(shadow, torch.Tensor) and shadow.shape != call.shape:
            raise MalformedValue(
                f"the shadow of a result of {name}",
                f"The rule in {rule.__module__} returned shape {tuple(shadow.shape)} for {tuple(call.shape)}",
                "Return shadow.expand(call.shape), of a shadow with size 1 along dimensions in which it does not vary.",
            )
        return shadow

    def _argument(self, node: torch.fx.Node, argument: Any) -> Any:
        """Return what a rule sees of an argument: its shadow, or its values where these steer the result."""
        if isinstance(argument, torch.fx.Node):
            shadow = self.provenance.shadows[argument]
            if shadow is None and op_name(node.target) in ("cat", "concat"):
                return self._of_no_input(argument)
            if shadow is None and info(node.target).is_steered:
                return _SteeringValues(lambda: self._known(argument))
            return _NoShadow(argument.meta.get("val")) if shadow is None else shadow
        if isinstance(argument, list | tuple):
            return [self._argument(node, item) for item in argument]
        return argument

    def _of_no_input(self, node: torch.fx.Node) -> Any:
        """Return ids of tokens that are learned, or made of no input's."""
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.dim() < 2:
            return _NoShadow(value)
        first = 0 if node in self.constant else CONDITIONING_ID
        ids = torch.arange(first, first + math.prod(value.shape[1:]))
        return ids.view(1, *value.shape[1:]).expand(value.shape)

    def _known(self, node: torch.fx.Node) -> Any:
        """Return the values, on the CPU, of a tensor that follows from known ones; raises Unsupported."""
        if node in self.names:
            self.provenance.guards.add(self.names[node])
        if is_overwritten(node):
            raise Unsupported(f"the values of {node.name} are not known, as the model writes into it")
        if node not in self.known:
            if node.op != "call_function" or not is_pure(node.target):
                raise Unsupported(f"the values of {node.name} are not known")
            arguments = map_arg((node.args, node.kwargs), self._known)
            args, kwargs = tree_map_only(torch.device, lambda _: torch.device("cpu"), arguments)
            with torch.no_grad():
                self.known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        value = self.known[node]
        return value.cpu() if isinstance(value, torch.Tensor) else value

    def _record_base(self, node: torch.fx.Node) -> None:
        """Record whose memory a node may share, through any number of views."""
        source = node.args[0] if node.args and is_view(node.target) else None
        self.bases[node] = self.bases[source] if isinstance(source, torch.fx.Node) else node
        self.views.setdefault(self.bases[node], []).append(node)

    def _write_through(self, node: torch.fx.Node, written: ShadowTree) -> None:
        """Write what was written into a view into the tensor that it is cut from; its other views are unknown."""
        target = node.args[0]
        if not isinstance(target, torch.fx.Node) or _is_same_shadow(self.provenance.shadows[target], written):
            return
        base = self.bases[target]
        for view in self.views[base]:
            if view is not base:
                self.provenance.shadows[view] = unknown(view.meta.get("val"))
        while True:
            self.provenance.shadows[target] = written
            if target is base:
                return
            view, target = target, target.args[0]
            assert isinstance(target, torch.fx.Node)
            arguments = [self._argument(view, argument) for argument in view.args]
            written = write_back(view.target, arguments, written, target.meta["val"])


@dataclass(frozen=True)
class _NoShadow:
    """A tensor without a shadow; only its shape can matter."""

    value: Any

    @property
    def shape(self) -> torch.Size:
        return self.value.shape


class _SteeringValues:
    """A tensor without a shadow whose values are computed only if a rule reads them."""

    def __init__(self, get: Callable[[], Any]) -> None:
        self.get = get


def _fingerprint(tree: Any) -> Any:
    """Return a key that two shadows share only if they are the same memory, viewed the same way."""
    if isinstance(tree, torch.Tensor):
        return (tree.data_ptr() if type(tree) is torch.Tensor else 0, tuple(tree.shape), tree.stride())
    if isinstance(tree, list | tuple):
        return tuple(map(_fingerprint, tree))
    if isinstance(tree, dict):
        return tuple((name, _fingerprint(value)) for name, value in tree.items())
    if isinstance(tree, _NoShadow):
        return ("no shadow", _fingerprint(tree.value))
    return tree


def _is_same_shadow(a: ShadowTree, b: ShadowTree) -> bool:
    return _fingerprint(a) == _fingerprint(b)


def _attribute(module: torch.nn.Module, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value
