"""A trace that is reused for equal blocks against a trace of all of them."""

import contextlib
import copy

import pytest
import torch
import torch.utils._pytree as pytree
from torch.fx.node import map_arg
from zoo import FAMILIES

from planner.capture.trace import capture_module
from planner.capture.trace_reuse import TraceReuse


def described(capture):
    """Each node of a graph: its operation, arguments, results and module."""
    numbers = {node: number for number, node in enumerate(capture.graph.graph.nodes)}
    return [
        (
            node.op,
            str(node.target) if node.op == "call_function" else "",
            map_arg((node.args, node.kwargs), lambda parent: f"node {numbers[parent]}"),
            [(x.shape, x.stride(), x.dtype) for x in pytree.tree_leaves(node.meta.get("val")) if torch.is_tensor(x)],
            node.meta.get("nn_module_stack"),
        )
        for node in numbers
    ]


def assert_same(model, args, kwargs, monkeypatch):
    whole = copy.deepcopy(model)
    reused = described(capture_module(model, args, kwargs))
    with monkeypatch.context() as patch:
        patch.setattr(TraceReuse, "patched", lambda self: contextlib.nullcontext())
        assert reused == described(capture_module(whole, args, kwargs))


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_families_give_the_graph_of_a_whole_trace(name, monkeypatch):
    model, kwargs = FAMILIES[name]()
    assert_same(model, (), kwargs, monkeypatch)
    assert all("forward" not in vars(module) for module in model.modules())


class Block(torch.nn.Module):
    """A block that differs from its equals in one way, or not; it counts how often it is traced."""

    traced = 0

    def __init__(self, way, number, shared):
        super().__init__()
        self.way, self.linear = way, torch.nn.Linear(4, 4)
        self.scale = number if way == "attribute" else 2
        self.where = [torch.nn.Parameter(torch.ones(4))] if way == "hidden weight" else []
        self.register_buffer("order", torch.tensor([0, 1, 3, 2] if way == "buffer" and number else [0, 1, 2, 3]))
        if shared is not None:
            self.shared = shared
        if way == "hook":
            self.linear.register_forward_hook(lambda *_: None)

    def forward(self, x, mask, depth):
        Block.traced += 1
        if self.way.startswith("reads") and (mask & mask).any():
            x = x + 1
        if self.way == "stores":
            self.shape = x.shape
        if self.way == "writes":
            x[:, 1:].mul_(2)
        if self.way == "writes to several":
            torch._foreach_mul_([x], 2)
        if self.way == "writes anew":
            x = torch.empty_like(x).copy_(x)
            x[:, 1:] = 2
        for weight in self.where:
            x = x * weight
        if self.way == "shares":
            x = self.shared(x)
        x = self.linear(x[:, self.order]) * self.scale + depth * mask[:, None]
        return {"x": x, "mask": mask, "depth": depth}


class Model(torch.nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way = way
        shared = torch.nn.Sequential(torch.nn.Linear(4, 4)) if way == "shares" else None
        self.blocks = torch.nn.ModuleList(Block(way, number, shared) for number in range(12 if shared else 4))

    def forward(self, x, mask):
        depth = 1
        for number, block in enumerate(self.blocks):
            longer = torch.cat([x, x]) if self.way == "shape" and number == 1 else x
            length = 2 if self.way == "shape" and number == 1 else 1
            result = block(longer, mask if self.way == "reads the same" else mask.repeat(length), depth)
            x, depth = result["x"][:3], result["depth"] + (self.way == "argument")
            if self.way == "outside":
                self.blocks[min(number + 1, 3)].where = [x.sum(0)]
        return x


@pytest.mark.parametrize(
    ("way", "traced"),
    [
        ("alike", 1),
        ("writes anew", 1),
        ("reads the same", 1),
        ("shape", 2),
        ("buffer", 2),
        ("attribute", 4),
        ("argument", 4),
        ("hidden weight", 4),
        ("hook", 4),
        ("reads", 4),
        ("stores", 4),
        ("writes", 4),
        ("writes to several", 4),
        ("outside", 4),
        ("shares", 12),
    ],
)
def test_traces_are_reused_for_blocks_that_differ_in_nothing(way, traced, monkeypatch):
    args = torch.randn(3, 4), torch.tensor([True, False, True])
    Block.traced = 0
    capture_module(Model(way), args, {})
    assert Block.traced == traced
    assert_same(Model(way), args, {}, monkeypatch)
