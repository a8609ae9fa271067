"""Capture: from a module or a Dynamo graph to one ATen graph, in which each attention is one node.

Tensors that carry weights or pictures are replaced by fakes, so nothing is computed and no weights are needed.
When a module is traced, whole-number tensors (masks, position ids) stay real, so that code which branches on them is
traced as it would run. A graph of Dynamo's will run again with other values and is traced without them.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import gc
import inspect
import logging
import re
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
import torch.fx.traceback as fx_traceback
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch._guards import tracing
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from planner.capture.specialization import KnownValues, digest, is_known, is_whole_number
from planner.capture.trace_reuse import CopiedBlocks
from planner.errors import CannotCapture, times

Model = TypeVar("Model", bound=torch.nn.Module)

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
"""The node of an attention site."""


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a model, by name, in the order of its signature."""

    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @staticmethod
    def of(model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Bind arguments to the names of ``model.forward``."""
        bound = inspect.signature(model.forward).bind_partial(*args, **kwargs)
        named = dict[str, Any]()
        for name, value in bound.arguments.items():
            kind = bound.signature.parameters[name].kind
            named.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
        return Call(named)

    @cached_property
    def tensors(self) -> list[tuple[str, torch.Tensor]]:
        """Every tensor of the call with the name of its argument: ``hidden_states``, ``image_embeds.1``."""
        found = list[tuple[str, torch.Tensor]]()
        for name, value in self.arguments.items():
            for path, leaf in pytree.tree_flatten_with_path(value)[0]:
                if isinstance(leaf, torch.Tensor):
                    found.append((name + "".join(_spell(key) for key in path), leaf))
        return found

    def signature(self) -> str:
        """Shapes and dtypes of the tensors and the whole numbers: ``hidden_states=1x96x64 bfloat16, height=8``."""
        tensors = [
            f"{name}={times(tensor.shape) or 'scalar'} {str(tensor.dtype).removeprefix('torch.')}"
            for name, tensor in self.tensors
        ]
        numbers = [f"{name}={value}" for name, value in self.arguments.items() if _is_whole(value)]
        return ", ".join(tensors + numbers)

    def devices(self) -> tuple[str, ...]:
        """Where the tensors of the call live, each device once, sorted."""
        return tuple(sorted({str(tensor.device) for _, tensor in self.tensors}))

    def tensor(self, name: str) -> torch.Tensor:
        """Return the tensor of the call that has this name; raises KeyError."""
        return dict(self.tensors)[name]

    def digest(self, name: str) -> bytes:
        """Return a digest of the values of one tensor of the call; raises KeyError."""
        return digest(self.tensor(name))


@dataclass(frozen=True)
class Capture:
    """An ATen graph and, for each of its placeholders, the tensor it stands for (None for what is no tensor).

    device: where attention runs; the CPU for a graph without any. read: inputs on whose values the graph depends.
    """

    graph: torch.fx.GraphModule
    inputs: tuple[torch.Tensor | None, ...]
    device: torch.device
    read: tuple[torch.Tensor, ...] = ()

    @staticmethod
    def empty() -> Capture:
        """A graph of nothing."""
        graph = torch.fx.Graph()
        graph.output(())
        return Capture.of(torch.fx.GraphModule({}, graph), ())

    @staticmethod
    def of(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Capture:
        """A capture of a graph that has not been rewritten, and of all its inputs."""
        device = next((node.meta["val"].device for node in graph.graph.nodes if node.target is ATTENTION), "cpu")
        return Capture(graph, tuple(x if isinstance(x, torch.Tensor) else None for x in inputs), torch.device(device))

    def attention_nodes(self) -> list[torch.fx.Node]:
        """The attention sites, in execution order."""
        return [node for node in self.graph.graph.nodes if node.target is ATTENTION]


def capture_module(
    model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], runs: bool = False
) -> Capture:
    """Trace a module, on the meta device or any other, without running it; raises CannotCapture.

    Tensors on the meta device are traced as if they were on the CPU. runs: run it after all, on the tensors themselves,
    so that a graph that depends on the model's own values can be traced too.
    """
    model = uncompiled(model)
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    leaves, spec = pytree.tree_flatten((weights, tuple(args), dict(kwargs)))
    leaves = apart(leaves)
    at = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    tensors = [leaves[index] for index in at]
    known = KnownValues([None if n < len(weights) or x.device.type == "meta" else x for n, x in enumerate(tensors)])

    def run(*traced: torch.Tensor) -> Any:
        values = list(leaves)
        for index, value in zip(at, traced, strict=True):
            values[index] = value
        traced_weights, traced_args, traced_kwargs = pytree.tree_unflatten(values, spec)
        with known:
            return torch.func.functional_call(model, traced_weights, traced_args, traced_kwargs)

    hooked = list(filter(is_hooked, model.modules()))
    device = _execution_device(tensors[len(weights) :]) if hooked else None
    processors = [module.processor for module in model.modules() if hasattr(module, "processor")]
    copied = contextlib.nullcontext() if runs else CopiedBlocks(model, known.asked).standing_in()
    with torch.no_grad(), _module_paths(model), _tables_on_cpu(model), _without_hooks(hooked, processors), copied:
        graph = _trace(run, tensors, type(model).__name__, lambda x: runs or is_known(x), device)
    return replace(Capture.of(graph, tensors), read=tuple(tensors[place] for place in sorted(known.read)))


def uncompiled(model: Model) -> Model:
    """Another object that shares everything with a model, but for what it was compiled to."""
    plain = object.__new__(type(model))
    vars(plain).update({name: value for name, value in vars(model).items() if not name.startswith("__")})
    vars(plain)["_compiled_call_impl"] = None
    return plain


def capture_graph(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Capture:
    """Lower a graph that Dynamo captured to ATen, keeping the module paths of its nodes; raises CannotCapture."""
    interpreter = torch.fx.Interpreter(graph)
    traced = _trace(lambda *values: interpreter.run(*values), list(inputs), "this model", lambda _: False, None)
    return Capture.of(traced, inputs)


def why_not_lower(graph: torch.fx.GraphModule) -> str | None:
    """Why a graph of Dynamo's cannot be lowered to ATen, None if it can."""
    if any(getattr(node.target, "__module__", "").startswith("torch._functorch") for node in graph.graph.nodes):
        return "its graph holds a vmap, such as FlexAttention's of a mask, which cannot be lowered"
    return None


def attention_calls(graph: torch.fx.GraphModule) -> list[str]:
    """Module paths of all attention in a graph of Dynamo's, FlexAttention too."""
    called = (F.scaled_dot_product_attention, torch.ops.higher_order.flex_attention)
    return [module_path(node) or "attention" for node in graph.graph.nodes if node.target in called]


def module_path(node: torch.fx.Node) -> str:
    """Path of the module that a node comes from, such as ``transformer_blocks.3.attn``; empty if unknown."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = str(list(stack.values())[-1][0])
    # Dynamo spells it L['self'].__dict__['_modules']['transformer_blocks'].3.attn, or L['self'].attn.
    path = re.sub(r"\.?__dict__|\['_modules'\]|_modules\.", "", path)
    path = re.sub(r"\['([^']*)'\]|\[(\d+)\]", lambda m: f".{m[1] or m[2]}", path)
    return re.sub(r"^L\.?(_*self_*|fn|args|model)?\.?|_orig_mod\.", "", path).strip(".")


def _trace(
    run: Callable[..., Any],
    inputs: list[Any],
    model: str,
    stays_real: Callable[[torch.Tensor], bool],
    device: torch.device | None,
) -> torch.fx.GraphModule:
    """device: where all tensors are taken to be, where it is not where they are."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [x if not isinstance(x, torch.Tensor) or stays_real(x) else _fake(x, mode, device) for x in inputs]
    try:
        # A tracing context of our own: sizes must not become symbols of Dynamo's.
        with tracing(None), fx_traceback.preserve_node_meta(), _quiet():
            return make_fx(run, tracing_mode="real", pre_dispatch=True)(*fakes)
    except Exception as error:
        raise CannotCapture(
            model, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error


def is_hooked(module: torch.nn.Module) -> bool:
    """Whether accelerate or diffusers do something before or after a module runs."""
    attributes = module.__dict__
    return "_hf_hook" in attributes or ("_diffusers_hook" in attributes and bool(attributes["_diffusers_hook"].hooks))


def holds_caches(arguments: Any) -> bool:
    """Whether arguments hold objects that a model may write to."""
    return any(map(_is_cache, pytree.tree_leaves(arguments)))


def apart(arguments: Any) -> Any:
    """Arguments with their caches copied, so that a model may be run for a look; tensors and modules are shared."""
    return pytree.tree_map(lambda leaf: _copied(leaf) if _is_cache(leaf) else leaf, arguments)


def _is_cache(leaf: Any) -> bool:
    plain = bool | int | float | complex | str | bytes | torch.dtype | torch.device | torch.Generator | enum.Enum
    return not (leaf is None or isinstance(leaf, plain | _SHARED))


_SHARED = torch.Tensor | torch.nn.Module | type | types.FunctionType | types.ModuleType


def _copied(cache: Any) -> Any:
    """A deep copy that shares tensors, modules and functions."""
    found, seen, memo = [cache], set[int](), dict[int, Any]()
    while found:
        each = found.pop()
        if isinstance(each, _SHARED):
            memo[id(each)] = each
        elif id(each) not in seen:
            seen.add(id(each))
            found += gc.get_referents(each)
    return copy.deepcopy(cache, memo)


def _fake(tensor: torch.Tensor, mode: FakeTensorMode, device: torch.device | None) -> torch.Tensor:
    if tensor.device.type != "meta" and device in (None, tensor.device):
        return mode.from_tensor(tensor, static_shapes=True)
    fake = FakeTensor(mode, tensor.detach().to("meta"), device or torch.device("cpu"))
    return fake.requires_grad_(tensor.requires_grad)


def _execution_device(inputs: Sequence[torch.Tensor]) -> torch.device:
    """Where a model runs whose weights are elsewhere until they are needed."""
    return next((x.device for x in inputs if x.device.type not in ("cpu", "meta")), torch.device("cpu"))


@contextlib.contextmanager
def _without_hooks(hooked: Sequence[torch.nn.Module], processors: Sequence[Any]) -> Iterator[None]:
    """While tracing, leave out what accelerate and diffusers wrap around the forward of modules, and collectives."""
    wrapped = {module: vars(module).pop("forward") for module in hooked if "forward" in vars(module)}
    spread = [processor for processor in processors if getattr(processor, "_parallel_config", None) is not None]
    configs = [processor._parallel_config for processor in spread]
    for processor in spread:
        processor._parallel_config = None
    try:
        yield
    finally:
        for module, forward in wrapped.items():
            vars(module)["forward"] = forward
        for processor, config in zip(spread, configs, strict=True):
            processor._parallel_config = config


def is_same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether an input of a graph is an argument of the call, perhaps by another object."""
    if tensor is other:
        return True
    if tensor.device.type == "meta" or other.device.type == "meta" or isinstance(tensor, torch.nn.Parameter):
        return False
    return tensor.shape == other.shape and tensor.dtype == other.dtype and tensor.data_ptr() == other.data_ptr() != 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's own log of a failed trace from standing before our error."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _module_paths(model: torch.nn.Module) -> Iterator[None]:
    """While tracing, give every node the path of the module that makes it."""
    paths = {module: path for path, module in model.named_modules()}
    stack = list[tuple[str, type]]()

    def enter(module: torch.nn.Module, _: Any) -> None:
        if module in paths:
            stack.append((paths[module], type(module)))
            _publish()

    def leave(module: torch.nn.Module, _inputs: Any, _output: Any) -> None:
        if module in paths:
            stack.pop()
            _publish()

    def _publish() -> None:
        fx_traceback.current_meta["nn_module_stack"] = {str(i): entry for i, entry in enumerate(stack)}

    hooks = [
        torch.nn.modules.module.register_module_forward_pre_hook(enter),
        torch.nn.modules.module.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        fx_traceback.current_meta.pop("nn_module_stack", None)


@contextlib.contextmanager
def _tables_on_cpu(model: torch.nn.Module) -> Iterator[None]:
    """While tracing, move tables that modules of a meta model keep as plain attributes to the CPU, without values."""
    moved = list[tuple[dict[str, Any], str, torch.Tensor]]()
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and value.device.type == "meta" and not is_whole_number(value):
                moved.append((vars(module), name, value))
    for attributes, name, value in moved:
        attributes[name] = torch.zeros_like(value, device="cpu")
    try:
        yield
    finally:
        for attributes, name, value in moved:
            attributes[name] = value


def _spell(key: Any) -> str:
    return "." + str(getattr(key, "idx", getattr(key, "key", key)))


def _is_whole(value: Any) -> bool:
    """A whole number, or nested lists of nothing else."""
    if isinstance(value, list | tuple):
        return bool(value) and len(value) <= 64 and all(map(_is_whole, value))
    return isinstance(value, int) and not isinstance(value, bool)
