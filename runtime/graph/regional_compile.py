"""Repeated blocks: a graph cut where a model's numbered blocks begin and end, equal pieces compiled once.

A transformer is a few kinds of block, each many times. A compiler that is handed the whole graph works on every copy;
handed the pieces it works on each kind once, and their weights are arguments.
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
"""A backend of torch.compile: a graph and example inputs to something that is called like the graph."""


@dataclass(frozen=True)
class Pieces:
    """A graph whose blocks are compiled: how many there are, and how many of them differ and so were compiled."""

    run: Compiled
    pieces: int
    kinds: int


def compile_blocks(graph: GraphModule, compiler: Compiler) -> Pieces:
    """Compile a captured graph block by block; blocks that are equal but for their weights are compiled once."""
    compiled = dict[Any, Compiled]()
    pieces = list(_pieces(graph.graph))
    outer, values = Graph(), dict[Node, Node]()
    modules = torch.nn.Module()
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            values[node] = outer.node_copy(node)
        elif node.op == "get_attr":
            values[node] = outer.node_copy(node)
            setattr(modules, str(node.target), getattr(graph, str(node.target)))
    for number, nodes in enumerate(pieces):
        piece, inputs, outputs = _cut_out(nodes)
        kind = _kind(piece)
        if kind not in compiled:
            compiled[kind] = _compile(piece, compiler)
        name = f"piece_{number}"
        setattr(modules, name, _Call(compiled[kind]))
        made = outer.call_module(name, tuple(values[node] for node in inputs))
        for at, node in enumerate(outputs):
            values[node] = outer.call_function(operator.getitem, (made, at))
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    outer.output(map_arg(output.args[0], values.__getitem__))
    return Pieces(GraphModule(modules, outer).forward, len(pieces), len(compiled))


def block_of(path: str) -> str:
    """The numbered block that a module belongs to, the outermost: ``blocks.3`` of ``blocks.3.attn.0``; else empty."""
    match = re.match(r"(.*?\.\d+)(\.|$)", path)
    return match[1] if match else ""


class _Call(torch.nn.Module):
    """What the outer graph calls in place of a piece."""

    def __init__(self, run: Compiled) -> None:
        super().__init__()
        self.forward = run


def _pieces(graph: Graph) -> Sequence[list[Node]]:
    """The graph's operations in order, cut wherever another block begins.

    What takes a value apart stays with what made it, so that only tensors pass between pieces.
    """
    home = dict[Node, int]()
    operations = [node for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    runs = [list(run) for _, run in itertools.groupby(operations, key=lambda node: block_of(module_path(node)))]
    for number, run in enumerate(runs):
        for node in run:
            source = node.args[0] if node.target is operator.getitem else None
            home[node] = home[source] if isinstance(source, Node) else number
    pieces: list[list[Node]] = [[] for _ in runs]
    for node in operations:
        pieces[home[node]].append(node)
    return [piece for piece in pieces if piece]


def _cut_out(nodes: Sequence[Node]) -> tuple[GraphModule, list[Node], list[Node]]:
    """Some nodes as a graph of their own, with what it takes from outside and what is used of it there."""
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


def _kind(piece: GraphModule) -> Any:
    """Equal for pieces that do the same with inputs that lie alike in memory."""
    index = {node: at for at, node in enumerate(piece.graph.nodes)}
    kind = list[Any]()
    for node in piece.graph.nodes:
        arguments = map_arg((node.args, node.kwargs), lambda x: f"%{index[x]}")  # pyright: ignore[reportArgumentType]
        target = _lies(node.meta["val"]) if node.op == "placeholder" else node.target
        kind.append((target, repr(arguments)))
    return tuple(kind)


def _lies(value: Any) -> Any:
    """How a value lies in memory; the value itself where it is no tensor."""
    if not isinstance(value, torch.Tensor):
        return repr(value)
    return (value.shape, value.stride(), value.dtype, value.device, value.requires_grad)


def _compile(piece: GraphModule, compiler: Compiler) -> Compiled:
    mode = FakeTensorMode()
    inputs = [_example(node.meta["val"], mode) for node in piece.graph.nodes if node.op == "placeholder"]
    with tracing(None):
        return compiler(piece, inputs)


def _example(value: Any, mode: FakeTensorMode) -> Any:
    """A tensor without memory that lies as a value does, in one mode for all inputs of a piece."""
    if not isinstance(value, torch.Tensor):
        return value
    with mode:
        made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    return made.requires_grad_(value.requires_grad)
