"""The same truths on a CUDA device; skipped where there is none."""

import contextlib

import pytest
import torch
from hypothesis import given, settings
from strategies import problems
from zoo import FAMILIES, GROUPS

import planner
from planner.runtime.attention.cpu import grouped_sdpa
from planner.runtime.masked_dense import MaskedDense, masked_dense

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@settings(max_examples=100)
@given(problems())
def test_grouped_attention_in_bf16(problem):
    layout, _, pattern = problem
    q, k, v = (torch.randn(2, 2, layout.tokens, 64, device="cuda").bfloat16() for _ in range(3))
    spellings = str(layout), str(pattern)
    exact = masked_dense(q.double(), k.double(), v.double(), *spellings)
    budget = (masked_dense(q, k, v, *spellings).double() - exact).abs().max()
    assert (grouped_sdpa(q, k, v, *spellings).double() - exact).abs().max() <= 2 * budget + 2**-8 * exact.abs().max()


@pytest.mark.filterwarnings(
    "ignore::planner.runtime.attention.dispatch.NoKernelWarning"
)  # some have heads of 12 channels
@pytest.mark.parametrize("name", FAMILIES)
def test_families_run_planned(name):
    model, kwargs = FAMILIES[name]()
    model, kwargs = model.cuda(), torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.cuda, kwargs)
    compiled = planner.compile(model, group=GROUPS.get(name, "1x3x5"), min_speedup=0.0)
    with torch.no_grad():
        ours = compiled(**kwargs, return_dict=False)[0]
        (plan,) = planner.report(compiled).plans
        with MaskedDense(plan):
            judged = model(**kwargs, return_dict=False)[0]
    assert any(decision.is_sparse for decision in plan.decisions)
    torch.testing.assert_close(ours, judged, rtol=1e-4, atol=1e-4)


def test_a_model_that_is_moved_is_planned_for_where_it_is():
    model, kwargs = FAMILIES["flux"]()
    compiled = planner.compile(model, group="3x5", min_speedup=0.0)
    with torch.no_grad():
        there = compiled(**kwargs, return_dict=False)[0]
        compiled.to("cuda")
        on_device = torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.cuda, kwargs)
        here = compiled(**on_device, return_dict=False)[0]
    assert [plan.target == "cpu" for plan in planner.report(compiled).plans] == [True, False]
    torch.testing.assert_close(here.cpu(), there, rtol=1e-4, atol=1e-4)


def test_a_compiled_model_replays_in_a_cuda_graph():
    model, kwargs = FAMILIES["flux"]()
    model, kwargs = model.cuda(), torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.cuda, kwargs)
    compiled = planner.compile(model, group="3x5", min_speedup=0.0, backend="inductor")
    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(2):
                compiled(**kwargs, return_dict=False)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            out = compiled(**kwargs, return_dict=False)[0]
        kwargs["hidden_states"].normal_()
        graph.replay()
        torch.testing.assert_close(out, compiled(**kwargs, return_dict=False)[0])


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_gated_model_switches_without_waiting_for_the_device(backend):
    model, kwargs = FAMILIES["flux"]()
    model, kwargs = model.cuda(), torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.cuda, kwargs)
    compiled = planner.compile(model, group="3x5", min_speedup=0.0, sparse_below=0.5, backend=backend)
    outputs = []
    with torch.no_grad():
        compiled(**kwargs, return_dict=False)
        (plan,) = planner.report(compiled).plans
        levels = [torch.full((2,), level, device="cuda") for level in (0.9, 0.5, 0.2)]
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            outputs = [compiled(**kwargs | {"timestep": level}, return_dict=False)[0] for level in levels]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for level, ours in zip(levels, outputs, strict=True):
            with MaskedDense(plan) if level[0] <= 0.5 else contextlib.nullcontext():
                judged = model(**kwargs | {"timestep": level}, return_dict=False)[0]
            torch.testing.assert_close(ours, judged, rtol=1e-3, atol=1e-3)
