"""Regional compilation: blocks that are equal but for their weights are compiled once."""

import pytest
import torch
from torch._dynamo.backends.registry import lookup_backend
from zoo import FAMILIES, FORCE, flux_inputs
from zoo.pictures import deep_flux

import planner
from planner.capture.trace import capture_module
from planner.runtime.graph.regional_compile import block_of, compile_regions
from planner.runtime.model import compiled as runtime_compiled

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def compilations(monkeypatch):
    """Count the operations of each graph that a backend compiled."""
    operations = []

    def counting(name):
        def compiler(graph, inputs):
            operations.append(sum(node.op == "call_function" for node in graph.graph.nodes))
            return lookup_backend(name)(graph, inputs)

        return compiler

    monkeypatch.setattr(runtime_compiled, "lookup_backend", counting)
    return operations


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("transformer_blocks.3.attn.to_q", "transformer_blocks.3"),
        ("context.refiner_blocks.10.attn.to_out.0", "context.refiner_blocks.10"),
        ("blocks.3", "blocks.3"),
        ("norm_out.linear", ""),
        ("linear_1.weight", ""),
        ("", ""),
    ],
)
def test_the_outermost_numbered_module_is_a_block(path, block):
    assert block_of(path) == block


@pytest.mark.parametrize(("reads_raster_order", "kinds"), [(True, 6), (False, 11)])
def test_a_deep_model_costs_no_more_compilations_than_a_shallow_one(
    compilations, monkeypatch, reads_raster_order, kinds
):
    monkeypatch.setattr(runtime_compiled, "has_kernels", lambda device: reads_raster_order)
    counts = []
    for double, single in ((3, 3), (4, 5)):
        model, kwargs = deep_flux(double, single), flux_inputs()
        compiled = planner.compile(model, group="3x5", backend="aot_eager", **FORCE)
        eager = planner.compile(model, group="3x5", **FORCE)
        torch.testing.assert_close(compiled(**kwargs)[0], eager(**kwargs)[0], rtol=1e-5, atol=1e-5)
        counts.append(len(compilations))
        compilations.clear()
    # Embeddings; one kind of double block; of single blocks the first (its inputs have other strides), the last (its
    # text is not read) and those between; the projection out. Permutations make the first block of each kind another.
    assert counts == [kinds, kinds]


def test_new_prompts_compile_nothing_and_a_new_resolution_compiles_once(compilations):
    compiled = planner.compile(deep_flux(2, 2), group="3x5", backend="aot_eager", **FORCE)
    compiled(**flux_inputs())
    first = len(compilations)
    for _ in range(3):
        compiled(**flux_inputs())
    assert len(compilations) == first
    for _ in range(3):
        compiled(**flux_inputs(14, 16))
    assert len(compilations) == 2 * first


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_the_same_by_regions(name):
    model, kwargs = FAMILIES[name]()
    compiled = planner.compile(model, backend="aot_eager", **FORCE)(**kwargs, return_dict=False)[0]
    eager = planner.compile(model, **FORCE)(**kwargs, return_dict=False)[0]
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)


def test_inductor_lowers_what_is_around_planned_attention():
    model, kwargs = deep_flux(1, 1), flux_inputs()
    compiled = planner.compile(model, group="3x5", backend="inductor", fullgraph=True, **FORCE)
    eager = planner.compile(model, group="3x5", **FORCE)
    torch.testing.assert_close(compiled(**kwargs)[0], eager(**kwargs)[0], rtol=1e-5, atol=1e-5)
    report = planner.report(compiled)
    assert list(report.startup[0]) == ["capture", "lower", "plan", "inductor", "run"]
    assert "first call" in str(report)


class Parts(torch.nn.Module):
    """Numbered blocks around an operation that gives several tensors, and one that changes its input."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            first, second = block(x).split(2, dim=-1)
            x = torch.cat([second, first], -1)
            x += 1
        return x, 3


def test_regions_pass_tensors_and_may_change_them():
    model, x = Parts(), torch.randn(5, 4)
    capture = capture_module(model, (x,), {})
    regions = compile_regions(capture.graph, lookup_backend("aot_eager"))
    assert (regions.count, regions.kinds) == (6, 2)
    assert torch.equal(regions.run(*capture.inputs)[0], model(x)[0])
