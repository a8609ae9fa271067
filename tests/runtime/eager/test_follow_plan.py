"""Attention calls that are not what was planned: what differs is named."""

import pytest
import torch
import torch.nn.functional as F

from planner.capture.call import Call
from planner.capture.trace import capture_module
from planner.errors import PlanDiverged
from planner.plan.options import Options
from planner.plan.target import Target
from planner.runtime.eager.follow_plan import FollowPlan, module_paths
from planner.stages import plan_capture


class Attention(torch.nn.Module):
    def forward(self, x):
        q = x.flatten(2).transpose(1, 2)[:, None]
        return F.scaled_dot_product_attention(q, q, q)


class Repeated(torch.nn.Module):
    """One attention, called so many times."""

    def __init__(self, times):
        super().__init__()
        self.attn, self.times = Attention(), times

    def forward(self, x):
        return sum(self.attn(x) for _ in range(self.times))


def following(model, x):
    """Return the mode that follows a plan of the model for an input."""
    call = Call.of(model, (x,), {})
    options = Options(pattern="crisscross", group="2x3", min_speedup=0.0)
    planned = plan_capture(options, Target.named("cpu"), capture_module(model, (x,), {}), call)
    assert planned.plan.decisions[0].is_sparse
    return FollowPlan(planned, module_paths(model), call, None)


def test_another_shape_is_named(no_grad):
    model = Repeated(1)
    expected = r"(?s)PlanDiverged at attn: .*Planned was attention of .* = 1x1x1x60x60x8; .*made one of 1x1x1x40x40x8"
    with pytest.raises(PlanDiverged, match=expected), following(model, torch.randn(1, 8, 6, 10)):
        model(torch.randn(1, 8, 4, 10))


def test_a_call_without_a_decision_is_named(no_grad):
    model, x = Repeated(2), torch.randn(1, 8, 6, 10)
    mode = following(model, x)
    model.times = 3
    expected = r"(?s)PlanDiverged at attn#2: .*Planned was no attention; the model made a call of scaled_dot_product_"
    with pytest.raises(PlanDiverged, match=expected), mode:
        model(x)
