"""Regional compilation: a graph is cut at the borders of a model's numbered blocks; equal regions are compiled once.

A transformer has a few kinds of block, and many of each kind. A compiler that gets the whole graph compiles every
block. A compiler that gets the regions compiles each kind once, with the weights as arguments.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._guards import tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from planner.capture.trace import module_path

Compiled = Callable[..., Any]
Compiler = Callable[[GraphModule, list[Any]], Compiled]
"""A backend of torch.compile: from a graph and example inputs to a callable of the graph's signature."""


@dataclass(frozen=True)
class Regions:
    """A graph compiled by regions.

    run: called like the graph. count: how many regions it has. kinds: how many different regions were compiled.
    """

    run: Compiled
    count: int
    kinds: int


def compile_regions(graph: GraphModule, compiler: Compiler) -> Regions:
    """Compile a captured graph region by region; regions that differ in their weights only are compiled once."""
    compiled = dict[Any, Compiled]()
    regions = list(_regions(graph.graph))
    outer, values = Graph(), dict[Node, Node]()
    modules = torch.nn.Module()
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            values[node] = outer.node_copy(node)
        elif node.op == "get_attr":
            values[node] = outer.node_copy(node)
            setattr(modules, str(node.target), getattr(graph, str(node.target)))
    for number, nodes in enumerate(regions):
        region, inputs, outputs = _extract(nodes)
        kind = _kind(region)
        if kind not in compiled:
            compiled[kind] = _compile(region, compiler)
        name = f"region_{number}"
        setattr(modules, name, _Call(compiled[kind]))
        results = outer.call_module(name, tuple(values[node] for node in inputs))
        for index, node in enumerate(outputs):
            values[node] = outer.call_function(operator.getitem, (results, index))
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    outer.output(map_arg(output.args[0], values.__getitem__))
    return Regions(GraphModule(modules, outer).forward, len(regions), len(compiled))


def block_of(path: str) -> str:
    """Return the outermost numbered block that a module belongs to: ``blocks.3`` of ``blocks.3.attn.0``; else empty."""
    match = re.match(r"(.*?\.\d+)(\.|$)", path)
    return match[1] if match else ""


class _Call(torch.nn.Module):
    """The module that the outer graph calls in place of a region."""

    def __init__(self, run: Compiled) -> None:
        super().__init__()
        self.forward = run


def _regions(graph: Graph) -> Sequence[list[Node]]:
    """Cut the graph's operations, in order, wherever another block begins.

    An operation that takes an item of several values stays in the region of their source, so that only tensors cross
    regions.
    """
    region_of = dict[Node, int]()
    operations = [node for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    runs = [list(run) for _, run in itertools.groupby(operations, key=lambda node: block_of(module_path(node)))]
    for number, run in enumerate(runs):
        for node in run:
            source = node.args[0] if node.target is operator.getitem else None
            region_of[node] = region_of[source] if isinstance(source, Node) else number
    regions: list[list[Node]] = [[] for _ in runs]
    for node in operations:
        regions[region_of[node]].append(node)
    return [region for region in regions if region]


def _extract(nodes: Sequence[Node]) -> tuple[GraphModule, list[Node], list[Node]]:
    """Copy some nodes into a graph of their own; return it with the nodes of its inputs and of its outputs."""
    inside = set(nodes)
    inputs = [node for node in dict.fromkeys(x for node in nodes for x in node.all_input_nodes) if node not in inside]
    outputs = [node for node in nodes if any(user not in inside for user in node.users)]
    graph, values = Graph(), dict[Node, Node]()
    for number, node in enumerate(inputs):
        values[node] = graph.placeholder(f"x{number}")
        values[node].meta["val"] = node.meta.get("val")
    for node in nodes:
        values[node] = graph.node_copy(node, values.__getitem__)
    graph.output(tuple(values[node] for node in outputs))
    return GraphModule(torch.nn.Module(), graph), inputs, outputs


def _kind(region: GraphModule) -> Any:
    """Return a key that is equal for regions of the same operations on inputs of the same strides and dtypes."""
    index = {node: at for at, node in enumerate(region.graph.nodes)}
    kind = list[Any]()
    for node in region.graph.nodes:
        arguments = map_arg((node.args, node.kwargs), lambda x: f"%{index[x]}")  # pyright: ignore[reportArgumentType]
        target = _tensor_key(node.meta["val"]) if node.op == "placeholder" else node.target
        kind.append((target, repr(arguments)))
    return tuple(kind)


def _tensor_key(value: Any) -> Any:
    """Return shape, strides, dtype and device of a tensor, and the value itself of anything else."""
    if not isinstance(value, torch.Tensor):
        return repr(value)
    return (value.shape, value.stride(), value.dtype, value.device, value.requires_grad)


def _compile(region: GraphModule, compiler: Compiler) -> Compiled:
    mode = FakeTensorMode()
    inputs = [_example(node.meta["val"], mode) for node in region.graph.nodes if node.op == "placeholder"]
    with tracing(None):
        return compiler(region, inputs)


def _example(value: Any, mode: FakeTensorMode) -> Any:
    """Make a fake tensor of a value's shape and strides, in one mode for all inputs of a region."""
    if not isinstance(value, torch.Tensor):
        return value
    with mode:
        fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    return fake.requires_grad_(value.requires_grad)
