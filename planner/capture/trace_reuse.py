"""Trace reuse: of a model's equal blocks one is traced, and its nodes are copied for the others.

A transformer is a few kinds of block, each many times, and tracing them all is most of what a trace takes. Blocks are
equal if nothing tells them apart but their weights. A block's nodes are copied if its inputs are like those of the
traced one, the very same where that read their values, and if its nodes follow from its inputs and weights alone.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
import torch.utils._pytree as pytree
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import (
    PythonKeyTracer,
    disable_proxy_modes_tracing,
    get_proxy_mode,
    get_proxy_slot,
    track_tensor_tree,
)

from planner.capture.ops import changed_by, info, is_alias
from planner.capture.patched_forward import replaced
from planner.capture.specialization import digest, is_known, sources

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, slice)
_BY_IDENTITY = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, torch.Tensor)
_OF_EVERY_MODULE = frozenset(vars(torch.nn.Module())) - {"training"}
_HOOKS = tuple(name for name in _OF_EVERY_MODULE if name.endswith("_hooks"))


class _Incomparable(Exception):
    """An object may differ from another in a way that cannot be seen."""


def equal_blocks(model: torch.nn.Module) -> dict[torch.nn.Module, int]:
    """Return the numbered modules of a model that have equals and share no modules, by the number of their kind."""
    kinds = dict[Any, list[torch.nn.Module]]()
    for parent in model.modules():
        for name, child in parent.named_children():
            if name.isdigit() and any(child.children()):
                try:
                    kinds.setdefault(_description(child), []).append(child)
                except _Incomparable:
                    continue
    alike = [blocks for blocks in kinds.values() if len(blocks) > 1 and not _share_modules(blocks)]
    return {block: number for number, blocks in enumerate(alike) for block in blocks}


def _share_modules(blocks: Sequence[torch.nn.Module]) -> bool:
    modules = [module for block in blocks for module in block.modules()]
    return len(set(modules)) < len(modules)


def _description(module: torch.nn.Module) -> Any:
    """Return all that makes a module what it is but the values of its weights, comparable; raises _Incomparable."""
    if "forward" in vars(module) or any(vars(module)[name] for name in _HOOKS):
        raise _Incomparable
    children = [(name, child and _description(child)) for name, child in module._modules.items()]
    weights = [(name, _like(value)) for name, value in {**module._parameters, **module._buffers}.items()]
    steering = tuple(digest(value) for value in module._buffers.values() if value is not None and is_known(value))
    return type(module), _comparable(_attributes(module), ()), steering, tuple(weights), tuple(children)


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE and name != "forward"}


def _comparable(value: Any, around: tuple[int, ...]) -> Any:
    """Return a value such that equal ones are the same to a trace; raises _Incomparable.

    around: the objects that it lies in, by identity.
    """
    if isinstance(value, _PLAIN):
        return type(value), str(value) if isinstance(value, slice) else value
    if isinstance(value, _BY_IDENTITY):
        return id(value)
    if id(value) in around or isinstance(value, torch.nn.Module):
        raise _Incomparable
    around = (*around, id(value))
    if isinstance(value, dict):
        return type(value), tuple((_comparable(key, around), _comparable(each, around)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(_comparable(each, around) for each in value)
    if isinstance(value, set | frozenset) and all(isinstance(each, _PLAIN) for each in value):
        return type(value), frozenset(value)
    if isinstance(value, partial):
        return _comparable((value.func, value.args, value.keywords), around)
    if type(value).__module__ == "builtins" or not hasattr(value, "__dict__"):
        raise _Incomparable
    return type(value), _comparable(vars(value), around)


def _like(tensor: torch.Tensor | None) -> Any:
    """Return what tensors have in common that code without values cannot tell apart."""
    if tensor is None:
        return None
    return type(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


Stack = list[tuple[str, type]]
"""Modules that are running, by path and type, from the model on."""


@dataclass(frozen=True)
class _Trace:
    """The trace of one block: the modules that it lies in, its inputs, its own nodes, and its outputs.

    steering: those inputs whose values it read. outputs: the leaves of its result, each with its node if it is a
    tensor. spec: how they are nested.
    """

    stack: Stack
    inputs: Sequence[Node]
    nodes: Sequence[Node]
    steering: frozenset[Node]
    outputs: Sequence[tuple[Any, Node | None]]
    spec: pytree.TreeSpec

    def is_for(self, inputs: Sequence[Node]) -> bool:
        """Tell whether other inputs give the same trace."""
        pairs = zip(self.inputs, inputs, strict=True)
        return all(own is other or own not in self.steering for own, other in pairs)


class TraceReuse:
    """Takes the place of the forward of a model's equal blocks while a trace of make_fx runs.

    steering: the nodes whose values were read so far.
    """

    def __init__(self, model: torch.nn.Module, steering: Sequence[Node]) -> None:
        self._kinds = equal_blocks(model)
        self._steering = steering
        self._traces = dict[Any, _Trace]()

    def patched(self) -> AbstractContextManager[None]:
        """Return a context in which equal blocks are traced once; threads that do not trace run their own forwards."""
        return replaced({block: self._forward_of(block, block.forward) for block in self._kinds})

    def _forward_of(self, block: torch.nn.Module, own: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            mode = get_proxy_mode()
            return own(*args, **kwargs) if mode is None else self._run(block, own, args, kwargs, mode.tracer)

        return forward

    def _run(
        self,
        block: torch.nn.Module,
        own: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tracer: PythonKeyTracer,
    ) -> Any:
        """Return the result of a block, from a copied trace or a new one."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        tensors += [weight for _, weight in block.named_parameters(remove_duplicate=False)]
        tensors += [buffer for _, buffer in block.named_buffers(remove_duplicate=False)]
        inputs = [node for tensor in tensors for node in [_node_of(tensor, tracer)] if node is not None]
        plain = [leaf for leaf in leaves if not isinstance(leaf, torch.Tensor)]
        state = _state(block)
        if len(inputs) < len(tensors) or state is None or not all(isinstance(leaf, _PLAIN) for leaf in plain):
            return own(*args, **kwargs)
        repeated = tuple(inputs.index(node) for node in inputs)
        key = (self._kinds[block], state, spec, repeated, _comparable(plain, ()), tuple(map(_like, tensors)))
        stack = _stack(fx_traceback.current_meta)
        if key in self._traces and self._traces[key].is_for(inputs):
            return _copied(self._traces[key], stack, inputs, tensors, tracer)
        last, reads = next(iter(reversed(tracer.graph.nodes))), len(self._steering)
        result = own(*args, **kwargs)
        nodes = _nodes_after(last)
        steering = frozenset(sources(self._steering[reads:], set(nodes)).intersection(inputs))
        result_leaves, result_spec = pytree.tree_flatten(result)
        outputs = [(x, _node_of(x, tracer) if isinstance(x, torch.Tensor) else None) for x in result_leaves]
        trace = _Trace(stack, inputs, nodes, steering, outputs, result_spec)
        if state == _state(block) and _is_closed(trace):
            self._traces[key] = trace
        return result


def _state(block: torch.nn.Module) -> Any:
    """Return what is stored in the modules of a block beside weights, comparable; None if it is not."""
    try:
        return tuple(_comparable(_attributes(module), ()) for module in block.modules())
    except _Incomparable:
        return None


def _stack(meta: dict[str, Any]) -> Stack:
    return list(meta.get("nn_module_stack", {}).values())


def _node_of(tensor: torch.Tensor, tracer: PythonKeyTracer) -> Node | None:
    """Return the node of a tensor under trace, of any shape."""
    proxy = get_proxy_slot(tensor, tracer, None, lambda slot: slot.proxy)
    return None if proxy is None else proxy.node


def _nodes_after(node: Node) -> list[Node]:
    """Return the nodes of a graph that follow one, in order."""
    nodes = list[Node]()
    while (node := node.next).op != "root":
        nodes.append(node)
    return nodes


def _is_closed(trace: _Trace) -> bool:
    """Tell whether a block's nodes and outputs follow from its inputs, and it wrote to nothing else."""
    inputs = set(trace.inputs)
    inside = inputs.union(trace.nodes)
    return all(
        node.op in ("call_function", "get_attr")
        and inside.issuperset(node.all_input_nodes)
        and all(_is_new(changed, inputs) for changed in changed_by(node))
        for node in trace.nodes
    ) and all(
        node in inputs or (isinstance(leaf, FakeTensor) and node in inside) or isinstance(leaf, _PLAIN)
        for leaf, node in trace.outputs
    )


def _is_new(node: Any, inputs: set[Node]) -> bool:
    """Tell whether a node is the view of memory that the block allocated, not of an input's."""
    if not isinstance(node, Node):
        return False
    while node not in inputs and is_alias(node):
        node = node.all_input_nodes[0]
    return node not in inputs and info(node.target).allocates


def _copied(
    trace: _Trace, stack: Stack, inputs: Sequence[Node], tensors: Sequence[torch.Tensor], tracer: PythonKeyTracer
) -> Any:
    """Copy the nodes of a trace for a block in other modules, and return its result.

    inputs, tensors: the block's inputs, and the tensors that they are the nodes of.
    """
    copies = dict(zip(trace.inputs, inputs, strict=True))
    for node in trace.nodes:
        copies[node] = tracer.graph.node_copy(node, copies.__getitem__)
        within = _stack(node.meta)[len(trace.stack) :]
        moved = [(stack[-1][0] + path.removeprefix(trace.stack[-1][0]), kind) for path, kind in within]
        copies[node].meta["nn_module_stack"] = {str(level): entry for level, entry in enumerate([*stack, *moved])}
    outputs = dict(zip(trace.inputs, tensors, strict=True))
    for leaf, node in trace.outputs:
        if node is not None and node not in outputs:
            outputs[node] = _tracked(leaf, copies[node], tracer)
    leaves = [leaf if node is None else outputs[node] for leaf, node in trace.outputs]
    return pytree.tree_unflatten(leaves, trace.spec)


def _tracked(like: torch.Tensor, node: Node, tracer: PythonKeyTracer) -> torch.Tensor:
    """Return a new tensor without values, shaped like another, of which a node is the node."""
    with disable_proxy_modes_tracing():
        tensor = like.new_empty_strided(like.size(), like.stride())
    track_tensor_tree(tensor, tracer.proxy(node), constant=None, tracer=tracer)
    return tensor
