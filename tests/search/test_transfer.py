"""Plans carried over to other sizes."""

from dataclasses import replace

import pytest
import torch
from examples import mixed
from zoo import FORCE, flux, flux_inputs, sd3

import planner
from planner.errors import PlanMismatch
from planner.patterns.density import rules_density
from planner.plan.quality import Certificate
from planner.runtime.masked_dense import MaskedDense


@pytest.fixture(scope="module")
def planned():
    model, kwargs = flux()
    call = {**kwargs, "return_dict": False}
    plan = mixed(planner.make_plan(model, kwargs=call, group="3x5", sparse_below=0.5, **FORCE))
    certificate = Certificate("psnr", 30.0, ("a", "b", "c"), (31.0, 32.0, 33.0), "test", "2026-01-01")
    return model, replace(plan, certificate=certificate)


def test_rules_hold_at_another_size_and_say_where_they_come_from(planned, no_grad):
    model, plan = planned
    other = {**flux_inputs(9, 22), "return_dict": False}
    carried = planner.transfer(plan, model, kwargs=other)
    assert [d.pattern for d in carried.decisions] == [d.pattern for d in plan.decisions]
    assert carried.certificate is None
    for decision in carried.decisions:
        rules, layout = decision.parsed()
        assert decision.density == pytest.approx(rules_density(rules, layout, decision.heads))
        assert decision.reason.startswith("extrapolated from encoder_hidden_states:8 | hidden_states[h:12 w:16]")
    compiled = planner.compile(model, plan=carried)
    for level in (0.2, 0.8):
        told = other | {"timestep": torch.full((2,), level)}
        with MaskedDense(carried, level):
            (judged,) = model(**told)
        torch.testing.assert_close(compiled(**told)[0], judged, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_carried_over_stays_dense_and_says_why(planned):
    model, plan = planned
    small = planner.transfer(plan, model, kwargs={**flux_inputs(2, 40), "return_dict": False})
    assert {decision.pattern for decision in small.decisions} == {"dense"}
    assert all("do not fit" in decision.reason and "h:2 w:40" in decision.reason for decision in small.decisions)
    fewer = replace(plan, decisions=plan.decisions[1:])
    carried = planner.transfer(fewer, model, kwargs={**flux_inputs(9, 22), "return_dict": False})
    assert "has no such site" in carried.decisions[0].reason
    one = replace(plan.decisions[0], heads=1, pattern="crisscross{axes=lines,group=3x5}")
    carried = planner.transfer(
        replace(plan, decisions=(one,)), model, kwargs={**flux_inputs(9, 22), "return_dict": False}
    )
    assert carried.decisions[0].reason.endswith("2 heads instead of 1")
    other, kwargs = sd3()
    with pytest.raises(PlanMismatch):
        planner.transfer(plan, other, kwargs=kwargs)
