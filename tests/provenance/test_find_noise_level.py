"""Sites that are sparse below a noise level and dense above it."""

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from zoo import FAMILIES, FORCE, flux

import planner
from planner.capture.call import Call
from planner.capture.trace import capture_module
from planner.errors import BadOption, BadSpelling, NoNoiseLevel
from planner.plan.noise_level import NoiseLevel
from planner.provenance.find_noise_level import find_noise_level
from planner.runtime.attention import dispatch
from planner.runtime.masked_dense import MaskedDense

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def sparse_calls(monkeypatch):
    """One entry for each attention that ran under its pattern."""
    seen = []

    def counting(*args, **kwargs):
        seen.append(args[4])
        return dispatch_grouped(*args, **kwargs)

    dispatch_grouped = dispatch.grouped_sdpa
    monkeypatch.setattr(dispatch, "grouped_sdpa", counting)
    return seen


def output(model, kwargs, noise=None):
    timestep = kwargs["timestep"] if noise is None else torch.full_like(kwargs["timestep"], noise)
    return model(**kwargs | {"timestep": timestep}, return_dict=False)[0]


@given(st.from_regex(r"[A-Za-z_]\w{0,20}", fullmatch=True), st.sampled_from([1.0, 2.5, 1000.0, 1e9 - 1]), st.booleans())
def test_spellings_parse_back(argument, full, is_reversed):
    level = NoiseLevel(argument, full, is_reversed)
    assert NoiseLevel.parse(str(level)) == level


@pytest.mark.parametrize("text", ["", "1-", "t/0", "2-t", "t/1e3", "a.b", "t/-1", "t/1000/2", "x" * 65])
def test_other_spellings_are_refused(text):
    with pytest.raises(BadSpelling, match="noise level"):
        NoiseLevel.parse(text)


@pytest.mark.parametrize(
    ("spelling", "timesteps", "level"),
    [("t", [0.25], 0.25), ("t/1000", [500, 250], 0.5), ("1-t", [0.25, 0.75], 0.75), ("1-t/1000", [1000], 0.0)],
)
def test_the_noisiest_of_a_batch_counts(spelling, timesteps, level):
    assert NoiseLevel.parse(spelling).of(torch.tensor(timesteps)).item() == level


@pytest.mark.parametrize("name", FAMILIES)
def test_the_range_of_a_models_timestep_is_in_its_graph(name):
    model, kwargs = FAMILIES[name]()
    level = find_noise_level(capture_module(model, (), kwargs), Call.of(model, (), kwargs))
    assert str(level) == ("timestep" if name in ("flux", "qwen") else "timestep/1000")


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_dense_above_and_sparse_below_without_a_compilation(backend):
    model, kwargs = flux()
    compiled = planner.compile(model, group="3x5", sparse_below=0.6, backend=backend, **FORCE)
    output(compiled, kwargs, 0.3)
    (plan,) = planner.report(compiled).plans
    assert (plan.noise, {decision.rules.levels for decision in plan.decisions}) == ("timestep", {(0.6,)})
    with torch._dynamo.config.patch(error_on_recompile=True):
        for noise in (1.0, 0.6001, 0.6, 0.2, 0.9, 0.0):
            ours, dense = output(compiled, kwargs, noise), output(model, kwargs, noise)
            with MaskedDense(plan):
                sparse = output(model, kwargs, noise)
            assert not torch.allclose(dense, sparse, atol=1e-5)
            torch.testing.assert_close(ours, sparse if noise <= 0.6 else dense, rtol=1e-5, atol=1e-5)
    assert planner.report(compiled).calls == (7,)


@pytest.mark.parametrize("level", [1 / 3, 0.123456789, 1e-9])
def test_levels_may_have_any_number_of_decimals(level):
    model, kwargs = FAMILIES["flux"]()
    call = {**kwargs, "return_dict": False}
    plan = planner.make_plan(model, kwargs=call, group="3x5", sparse_below=level, **FORCE)
    assert all(decision.rules.levels[0] == pytest.approx(level, abs=1e-6) for decision in plan.decisions)


def test_a_gated_plan_is_saved_read_and_followed():
    model, kwargs = flux()
    plan = planner.make_plan(
        model, kwargs={**kwargs, "return_dict": False}, group="3x5", sparse_below=0.5, noise="1-timestep", **FORCE
    )
    plan = planner.Plan.from_json(plan.to_json())
    compiled = planner.compile(model, plan=plan)
    torch.testing.assert_close(output(compiled, kwargs, 0.4), output(model, kwargs, 0.4), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(output(compiled, kwargs, 0.6), output(model, kwargs, 0.6), atol=1e-5)


def test_mistakes_are_named():
    model, kwargs = flux()
    for level in (0, -1, 1.5, float("nan")):
        with pytest.raises(BadOption, match="sparse_below"):
            planner.compile(model, sparse_below=level)
    with pytest.raises(BadSpelling):
        planner.compile(model, noise="sigma*2")
    with pytest.raises(NoNoiseLevel, match="sigma does not come into this graph"):
        output(planner.compile(model, group="3x5", sparse_below=0.5, noise="sigma", **FORCE), kwargs)
    with pytest.raises(NoNoiseLevel, match="none of them is called timestep"):
        planner.compile(Timeless(), group="2x3", sparse_below=0.5, **FORCE)(torch.randn(1, 8, 6, 10))


class Timeless(torch.nn.Module):
    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)[:, None]
        return torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


SCHEDULERS = {
    "flow euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow heun": lambda: diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
    "dpm++": lambda: diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    ),
    "ddim": diffusers.DDIMScheduler,
}


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_switches_where_its_noise_crosses_the_level(name, first, sparse_calls):
    """As pipelines do: from the first step or, as in image to image, from a later one; twice in a row."""
    model, kwargs = flux()
    compiled = planner.compile(model, group="3x5", sparse_below=0.7, **FORCE)
    output(compiled, kwargs, 0.1)
    scheduler = SCHEDULERS[name]()
    switched = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            scheduler.set_timesteps(8)
            if first and hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(first)
            latents = torch.randn(2, 192, 16)
            for t in scheduler.timesteps[first:]:
                sparse_calls.clear()
                predicted = output(compiled, kwargs | {"hidden_states": latents}, float(t) / 1000)
                assert len(sparse_calls) == (2 if float(t) <= 700 else 0)
                switched.append(bool(sparse_calls))
                if name.startswith("flow") and scheduler.step_index is not None:
                    sigma = scheduler.sigmas[scheduler.step_index].item()
                    assert abs(sigma - 0.7) < 1e-3 or (sigma <= 0.7) == switched[-1]
                latents = scheduler.step(predicted, t, latents, return_dict=False)[0]
    assert len(set(switched)) == 2 or first
    half = len(switched) // 2
    assert switched[:half] == switched[half:] == sorted(switched[:half])
