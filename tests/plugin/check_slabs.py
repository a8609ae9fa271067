"""What the plug-in's parts do once it is installed: run by tests/plugin/test_plugin.py in a process of its own."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import planner
from planner.plan.target import Target
from planner.runtime.masked_dense import MaskedDense


class Model(torch.nn.Module):
    """Attention over the squares of an image."""

    def forward(self, pixels):
        tokens = torch.ops.slabs.pool(pixels, 2)[:, None]
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


PIXELS = torch.randn(1, 8, 24, 40, generator=torch.Generator().manual_seed(0))


def test_the_pattern_is_spelled_by_its_fields():
    slab = planner.parse_pattern("slab{axis=1,group=4x8}")
    assert str(slab) == "slab{axis=1,group=4x8}"
    assert type(slab).__module__ == "planner_slabs.slab"


def test_a_plan_and_the_compiled_model_follow_it():
    model = Model()
    options = {"pattern": "slab", "group": "4x4", "target": "four-cores", "min_speedup": 0.0}
    (decision,) = planner.make_plan(model, args=(PIXELS,), **options).decisions
    assert (decision.layout, decision.pattern) == ("pixels[h:12 w:20]", "slab{axis=0,group=4x4}")
    compiled = planner.compile(model, **options)
    ours, dense = compiled(PIXELS), model(PIXELS)
    (plan,) = planner.report(compiled).plans
    assert (plan.target, plan.decisions[0].pattern) == ("four-cores", decision.pattern)
    with MaskedDense(plan):
        torch.testing.assert_close(ours, model(PIXELS), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, dense, atol=1e-2)


def test_a_budget_and_evidence_look_at_it():
    from planner.patterns.catalogue import catalogue
    from planner.patterns.layout import TokenLayout

    offered = set(map(str, catalogue(TokenLayout.parse("h:64 w:64"))))
    assert {"slab{axis=0,group=8x8}", "slab{axis=1,group=16x16,pooled=mean}"} <= offered


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_its_kernel_compiles_for_its_target():
    from planner.codegen.emit.bodies import emit
    from planner.codegen.spec.body import make_spec
    from planner.codegen.spec.candidates import choose_config
    from planner.codegen.spec.problem import make_problem
    from planner.runtime.kernels.compile import compile_emitted

    slab, h100 = "slab{axis=0,group=8x8}", Target.named("h100")
    asked = make_problem("h:64 w:64", slab, h100, heads=24, head_dim=128, dtype="bfloat16")
    emitted = emit(make_spec(asked, choose_config(asked)))
    assert emitted.spec.config.body == "slabs"
    assert compile_emitted(emitted).shared <= 227 * 1024


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("axis", [0, 1])
def test_its_kernel_is_launched_on_a_gpu_where_it_can_be(axis):
    from planner.runtime.kernels.select import attention, kernel_for
    from planner.runtime.masked_dense import masked_dense

    q, k, v = torch.randn(3, 2, 4, 40 * 64, 64, device="cuda", dtype=torch.bfloat16)
    layout, slab = "h:40 w:64", f"slab{{axis={axis},group=8x8}}"
    ours, _ = attention(q, k, v, layout, slab)
    assert (kernel_for(q, k, v, layout, slab).emitted.spec.config.body == "slabs") == (axis == 0)
    judged = masked_dense(q.float(), k.float(), v.float(), layout, slab)
    torch.testing.assert_close(ours.float(), judged, rtol=8e-3, atol=3e-2)


@pytest.mark.parametrize("name", ["slab", "body"])
def test_its_code_is_part_of_the_kernel_caches_key(name):
    from planner.runtime.kernels.emission_digest import emission_digest

    before, path = emission_digest(), Path(__file__).parent / "planner_slabs" / f"{name}.py"
    path.write_text(path.read_text() + "# changed\n")
    assert emission_digest() != before


def test_the_target_is_one_of_the_targets():
    four = Target.named("four-cores")
    assert four.tflops == 2 * Target.named("cpu").tflops
    with pytest.raises(planner.PlannerError, match="cpu, four-cores"):
        Target.named("five-cores")
