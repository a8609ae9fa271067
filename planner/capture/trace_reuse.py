"""Copied blocks: of a model's equal blocks one is traced, and what it became is copied for the others.

A transformer is a few kinds of block, each many times, and tracing them all is most of what a trace takes. Blocks are
equal if nothing tells them apart but their weights; a block is copied if it is given tensors like those that the traced
one was given, and the very same where it looked at values, and if what that became follows from them and from its
weights alone.
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


class _CannotTell(Exception):
    """Something may differ in a way that cannot be seen."""


def equal_blocks(model: torch.nn.Module) -> dict[torch.nn.Module, int]:
    """The numbered modules of a model that have equals, and modules of their own alone, by the number of their kind."""
    kinds = dict[Any, list[torch.nn.Module]]()
    for parent in model.modules():
        for name, child in parent.named_children():
            if name.isdigit() and any(child.children()):
                try:
                    kinds.setdefault(_description(child), []).append(child)
                except _CannotTell:
                    continue
    alike = [blocks for blocks in kinds.values() if len(blocks) > 1 and not _share_modules(blocks)]
    return {block: number for number, blocks in enumerate(alike) for block in blocks}


def _share_modules(blocks: Sequence[torch.nn.Module]) -> bool:
    modules = [module for block in blocks for module in block.modules()]
    return len(set(modules)) < len(modules)


def _description(module: torch.nn.Module) -> Any:
    """Everything that makes a module what it is but the values of its weights; raises _CannotTell."""
    if "forward" in vars(module) or any(vars(module)[name] for name in _HOOKS):
        raise _CannotTell
    children = [(name, child and _description(child)) for name, child in module._modules.items()]
    weights = [(name, _like(value)) for name, value in {**module._parameters, **module._buffers}.items()]
    steering = tuple(digest(value) for value in module._buffers.values() if value is not None and is_known(value))
    return type(module), _told(_attributes(module), ()), steering, tuple(weights), tuple(children)


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE and name != "forward"}


def _told(value: Any, around: tuple[int, ...]) -> Any:
    """A value such that equal ones are the same to a trace. around: what it lies in, by identity."""
    if isinstance(value, _PLAIN):
        return type(value), str(value) if isinstance(value, slice) else value
    if isinstance(value, _BY_IDENTITY):
        return id(value)
    if id(value) in around or isinstance(value, torch.nn.Module):
        raise _CannotTell
    around = (*around, id(value))
    if isinstance(value, dict):
        return type(value), tuple((_told(key, around), _told(each, around)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(_told(each, around) for each in value)
    if isinstance(value, set | frozenset) and all(isinstance(each, _PLAIN) for each in value):
        return type(value), frozenset(value)
    if isinstance(value, partial):
        return _told((value.func, value.args, value.keywords), around)
    if type(value).__module__ == "builtins" or not hasattr(value, "__dict__"):
        raise _CannotTell
    return type(value), _told(vars(value), around)


def _like(tensor: torch.Tensor | None) -> Any:
    """What tensors have in common that code without values cannot tell apart."""
    if tensor is None:
        return None
    return type(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


Stack = list[tuple[str, type]]
"""Modules that are being run, by path and type, from the model on."""


@dataclass(frozen=True)
class _Traced:
    """What a block became: the modules that it lay in, the nodes that it was given and that it made, and its result.

    steering: those of the given nodes whose values it looked at.
    """

    stack: Stack
    given: Sequence[Node]
    made: Sequence[Node]
    steering: frozenset[Node]
    result: Sequence[tuple[Any, Node | None]]
    spec: pytree.TreeSpec

    def serves(self, given: Sequence[Node]) -> bool:
        """Whether other nodes give the same block."""
        return all(mine is other or mine not in self.steering for mine, other in zip(self.given, given, strict=True))


class CopiedBlocks:
    """Stands in for the forward of a model's equal blocks while a trace of make_fx runs.

    asked: the nodes whose values were looked at so far.
    """

    def __init__(self, model: torch.nn.Module, asked: Sequence[Node]) -> None:
        self._kinds = equal_blocks(model)
        self._asked = asked
        self._traced = dict[Any, _Traced]()

    def standing_in(self) -> AbstractContextManager[None]:
        """While entered, on this and any other thread; the others are not traced and run their own."""
        return replaced({block: self._in_the_place_of(block, block.forward) for block in self._kinds})

    def _in_the_place_of(self, block: torch.nn.Module, own: Callable[..., Any]) -> Callable[..., Any]:
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
        """The result of a block, copied or traced."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        tensors += [weight for _, weight in block.named_parameters(remove_duplicate=False)]
        tensors += [buffer for _, buffer in block.named_buffers(remove_duplicate=False)]
        given = [node for tensor in tensors for node in [_node_of(tensor, tracer)] if node is not None]
        plain = [leaf for leaf in leaves if not isinstance(leaf, torch.Tensor)]
        state = _state(block)
        if len(given) < len(tensors) or state is None or not all(isinstance(leaf, _PLAIN) for leaf in plain):
            return own(*args, **kwargs)
        alike = tuple(given.index(node) for node in given)
        key = (self._kinds[block], state, spec, alike, _told(plain, ()), tuple(map(_like, tensors)))
        stack = _stack(fx_traceback.current_meta)
        if key in self._traced and self._traced[key].serves(given):
            return _copied(self._traced[key], stack, given, tensors, tracer)
        before, asked = next(iter(reversed(tracer.graph.nodes))), len(self._asked)
        result = own(*args, **kwargs)
        made, node = list[Node](), before.next
        while node.op != "root":
            made.append(node)
            node = node.next
        found, result_spec = pytree.tree_flatten(result)
        nodes = [_node_of(leaf, tracer) if isinstance(leaf, torch.Tensor) else None for leaf in found]
        steering = frozenset(sources(self._asked[asked:], set(made)).intersection(given))
        traced = _Traced(stack, given, made, steering, list(zip(found, nodes, strict=True)), result_spec)
        if state == _state(block) and _is_closed(traced):
            self._traced[key] = traced
        return result


def _state(block: torch.nn.Module) -> Any:
    """What is stored in the modules of a block beside weights; None if it cannot be told."""
    try:
        return tuple(_told(_attributes(module), ()) for module in block.modules())
    except _CannotTell:
        return None


def _stack(meta: dict[str, Any]) -> Stack:
    return list(meta.get("nn_module_stack", {}).values())


def _node_of(tensor: torch.Tensor, tracer: PythonKeyTracer) -> Node | None:
    """What stands for a tensor in the graph."""
    proxy = get_proxy_slot(tensor, tracer, None, lambda slot: slot.proxy)
    return None if proxy is None else proxy.node


def _is_closed(traced: _Traced) -> bool:
    """Whether what a block made and gave back follows from what it was given, and it wrote to nothing."""
    given = set(traced.given)
    inside = given.union(traced.made)
    return all(
        node.op in ("call_function", "get_attr")
        and inside.issuperset(node.all_input_nodes)
        and all(_is_new(changed, given) for changed in changed_by(node))
        for node in traced.made
    ) and all(
        node in given or (isinstance(leaf, FakeTensor) and node in inside) or isinstance(leaf, _PLAIN)
        for leaf, node in traced.result
    )


def _is_new(node: Any, given: set[Node]) -> bool:
    """Whether something is a view of a tensor that was made anew, not of one that was given."""
    if not isinstance(node, Node):
        return False
    while node not in given and is_alias(node):
        node = node.all_input_nodes[0]
    return node not in given and info(node.target).allocates


def _copied(
    traced: _Traced, stack: Stack, given: Sequence[Node], tensors: Sequence[torch.Tensor], tracer: PythonKeyTracer
) -> Any:
    """The result of a block in other modules that is given other nodes, and tensors that they stand for."""
    copies = dict(zip(traced.given, given, strict=True))
    for node in traced.made:
        copies[node] = tracer.graph.node_copy(node, copies.__getitem__)
        within = _stack(node.meta)[len(traced.stack) :]
        moved = [(stack[-1][0] + path.removeprefix(traced.stack[-1][0]), kind) for path, kind in within]
        copies[node].meta["nn_module_stack"] = {str(level): entry for level, entry in enumerate([*stack, *moved])}
    same = dict(zip(traced.given, tensors, strict=True))
    for leaf, node in traced.result:
        if node is not None and node not in same:
            same[node] = _tracked(leaf, copies[node], tracer)
    leaves = [leaf if node is None else same[node] for leaf, node in traced.result]
    return pytree.tree_unflatten(leaves, traced.spec)


def _tracked(like: torch.Tensor, node: Node, tracer: PythonKeyTracer) -> torch.Tensor:
    """A new tensor without values that a node stands for."""
    with disable_proxy_modes_tracing():
        made = like.new_empty_strided(like.size(), like.stride())
    track_tensor_tree(made, tracer.proxy(node), constant=None, tracer=tracer)
    return made
