"""The whole way through in seconds: capture, layout, plan, JSON, rewrite, run, judge."""

import torch
from zoo import flux

import planner
from planner.runtime.masked_dense import MaskedDense


def test_the_whole_way():
    model, kwargs = flux()
    plan = planner.make_plan(model, kwargs=kwargs, target="cpu", group="4x4", min_speedup=0.0)
    assert [str(d.pattern) for d in plan.decisions] == ["crisscross{axes=lines,group=4x4}"] * 2
    compiled = planner.compile(model, plan=planner.Plan.from_json(plan.to_json()))
    with torch.inference_mode():
        ours = compiled(**kwargs)[0]
        with MaskedDense(plan):
            judged = model(**kwargs)[0]
    torch.testing.assert_close(ours, judged, rtol=1e-5, atol=1e-5)
