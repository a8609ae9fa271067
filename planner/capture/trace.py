"""Capture: from a module or a Dynamo graph to one ATen graph, in which each attention is one node.

Tensors that carry weights or images are replaced by fakes, so nothing is computed and no weights are needed.
When a module is traced, whole-number tensors (masks, position ids) stay real, so that code which branches on them is
traced as it would run. A graph of Dynamo's will run again with other values and is traced without them.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
import torch.utils._pytree as pytree
from torch._guards import tracing
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from planner.capture.call import with_copied_caches
from planner.capture.hooks import execution_device, is_hooked, uncompiled, without_hooks
from planner.capture.ops import SDPA
from planner.capture.specialization import SpecializedValues, is_known, is_whole_number
from planner.capture.trace_reuse import TraceReuse
from planner.errors import CannotCapture

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
"""The node of an attention site."""


@dataclass(frozen=True)
class Capture:
    """An ATen graph and, for each of its placeholders, the tensor it stands for (None for what is no tensor).

    device: where attention runs; the CPU for a graph without any. guards: inputs on whose values the graph depends.
    """

    graph: torch.fx.GraphModule
    inputs: tuple[torch.Tensor | None, ...]
    device: torch.device
    guards: tuple[torch.Tensor, ...] = ()

    @staticmethod
    def empty() -> Capture:
        """Return a capture of a graph without operations."""
        graph = torch.fx.Graph()
        graph.output(())
        return Capture.of(torch.fx.GraphModule({}, graph), ())

    @staticmethod
    def of(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Capture:
        """Return the capture of a graph that has not been rewritten, and of all its inputs."""
        device = next((node.meta["val"].device for node in graph.graph.nodes if node.target is ATTENTION), "cpu")
        return Capture(graph, tuple(x if isinstance(x, torch.Tensor) else None for x in inputs), torch.device(device))

    def attention_nodes(self) -> list[torch.fx.Node]:
        """Return the nodes of attention sites, in execution order."""
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
    leaves = with_copied_caches(leaves)
    positions = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    tensors = [leaves[index] for index in positions]
    own = len(weights)
    values = SpecializedValues([None if n < own or x.device.type == "meta" else x for n, x in enumerate(tensors)])

    def run(*traced: torch.Tensor) -> Any:
        replaced = dict(zip(positions, traced, strict=True))
        arguments = pytree.tree_unflatten([replaced.get(n, leaf) for n, leaf in enumerate(leaves)], spec)
        with values:
            return torch.func.functional_call(model, *arguments)

    hooked = list(filter(is_hooked, model.modules()))
    device = execution_device(tensors[own:]) if hooked else None
    reuse = contextlib.nullcontext() if runs else TraceReuse(model, values.steering).patched()
    with torch.no_grad(), _module_paths(model), _tables_on_cpu(model), without_hooks(model, hooked), reuse:
        graph = _trace(run, tensors, type(model).__name__, lambda x: runs or is_known(x), device)
    return replace(Capture.of(graph, tensors), guards=tuple(tensors[place] for place in sorted(values.guards)))


def capture_graph(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Capture:
    """Lower a graph that Dynamo captured to ATen, keeping the module paths of its nodes; raises CannotCapture."""
    interpreter = torch.fx.Interpreter(graph)
    traced = _trace(lambda *values: interpreter.run(*values), list(inputs), "this model", lambda _: False, None)
    return Capture.of(traced, inputs)


def why_not_lower(graph: torch.fx.GraphModule) -> str | None:
    """Return why a graph of Dynamo's cannot be lowered to ATen, None if it can."""
    if any(getattr(node.target, "__module__", "").startswith("torch._functorch") for node in graph.graph.nodes):
        return "its graph holds a vmap, such as FlexAttention's of a mask, which cannot be lowered"
    return None


def attention_calls(graph: torch.fx.GraphModule) -> list[str]:
    """Return the module paths of all attention in a graph of Dynamo's, FlexAttention too."""
    called = (SDPA, torch.ops.higher_order.flex_attention)
    return [module_path(node) or "attention" for node in graph.graph.nodes if node.target in called]


def module_path(node: torch.fx.Node) -> str:
    """Return the path of the module that a node comes from, ``transformer_blocks.3.attn``; empty if unknown."""
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
    """Trace a function of tensors; raises CannotCapture.

    model: its name in errors. stays_real: which inputs keep their values. device: where all tensors are taken to be;
    None for where they are.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [x if not isinstance(x, torch.Tensor) or stays_real(x) else _fake(x, mode, device) for x in inputs]
    try:
        # In a tracing context of Dynamo's, sizes would become symbols.
        with tracing(None), fx_traceback.preserve_node_meta(), _quiet():
            return make_fx(run, tracing_mode="real", pre_dispatch=True)(*fakes)
    except Exception as error:
        first_line, *_ = [*str(error).splitlines(), ""]
        raise CannotCapture(model, f"{type(error).__name__}: {first_line}") from error


def _fake(tensor: torch.Tensor, mode: FakeTensorMode, device: torch.device | None) -> torch.Tensor:
    """Return a tensor of the same shape and dtype without values, on a device, or where the tensor is."""
    if tensor.device.type != "meta" and device in (None, tensor.device):
        return mode.from_tensor(tensor, static_shapes=True)
    fake = FakeTensor(mode, tensor.detach().to("meta"), device or torch.device("cpu"))
    return fake.requires_grad_(tensor.requires_grad)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's log of a failed trace while open: the error that is raised says the same."""
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
    """Give every traced node the path of the module that it comes from, while open."""
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
    """Hold tables, which modules of a meta model keep as plain attributes, on the CPU as zeros, while open."""
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
