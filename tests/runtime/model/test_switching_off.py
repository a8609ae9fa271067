"""A planned model turned off and on, measured, and planned inside its pipeline."""

import pytest
import torch
from zoo import FORCE, flux, pipelines

import planner
from planner.errors import BadOption, NotAModule, NotCompiled
from planner.runtime.model.measurement import relative_difference

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def planned():
    """Make a small FLUX, its planned twin, and the arguments of a call."""
    torch.manual_seed(0)
    model, inputs = flux()
    return model, planner.compile(model, pattern="crisscross", group="3x5", **FORCE), inputs | {"return_dict": False}


def test_a_disabled_model_runs_as_the_original_does(planned):
    model, compiled, inputs = planned
    (sparse,), (dense,) = compiled(**inputs), model(**inputs)
    assert not torch.equal(sparse, dense)
    with planner.disable(compiled):
        assert torch.equal(compiled(**inputs)[0], dense)
        assert "disabled: calls run dense until planner.enable(model)" in str(planner.report(compiled))
    assert torch.equal(compiled(**inputs)[0], sparse)
    planner.disable(compiled)
    assert torch.equal(compiled(**inputs)[0], dense)
    planner.enable(compiled)
    assert torch.equal(compiled(**inputs)[0], sparse)
    assert planner.report(compiled).calls == (3,)
    for switch in (planner.disable, planner.enable):
        with pytest.raises(NotCompiled):
            switch(model)


def test_an_error_in_a_disabled_block_enables_again(planned):
    _, compiled, _ = planned
    with pytest.raises(ZeroDivisionError), planner.disable(compiled):
        raise ZeroDivisionError
    assert not planner.report(compiled).disabled


def test_measuring_compares_with_the_original_and_is_kept(planned):
    model, compiled, inputs = planned
    found = planner.measure(compiled, **inputs, rounds=2)
    assert found.difference == pytest.approx(relative_difference(compiled(**inputs), model(**inputs)))
    assert 0 < found.difference < 1
    assert min(found.dense_seconds, found.planned_seconds) > 0
    assert found.dense_bytes is found.planned_bytes is None
    report = planner.report(compiled)
    assert report.measurements == (found,)
    assert f"measured: {found}" in str(report)
    with pytest.raises(BadOption, match="rounds=0"):
        planner.measure(compiled, **inputs, rounds=0)
    with pytest.raises(NotCompiled):
        planner.measure(model, **inputs)


def test_results_without_floating_tensors_do_not_differ():
    assert relative_difference(torch.arange(3), torch.arange(3)) == 0
    assert relative_difference((torch.ones(2), {"a": torch.zeros(2)}), (torch.zeros(2), {"a": torch.ones(2)})) == 2**0.5


class Experts:
    """A pipeline of two transformers, as Wan 2.2 has them, with a text encoder that is none."""

    def __init__(self):
        self.transformer, self.transformer_2, self.text_encoder = flux()[0], flux()[0], torch.nn.Linear(2, 2)

    @property
    def components(self):
        return vars(self)


def test_every_transformer_of_a_pipeline_is_planned_in_its_place():
    pipe = Experts()
    encoder, inputs = pipe.text_encoder, flux()[1]
    assert planner.compile(pipe, pattern="crisscross", group="3x5", **FORCE) is pipe
    for transformer in (pipe.transformer, pipe.transformer_2):
        transformer(**inputs)
        assert any(decision.is_sparse for decision in planner.report(transformer).plans[0].decisions)
    assert pipe.text_encoder is encoder


def test_a_pipeline_of_diffusers_samples_with_its_planned_transformer():
    pipe = pipelines.flux()[0].to("cpu")

    def sample():
        seeded = torch.Generator().manual_seed(0)
        return pipe("a cat", num_inference_steps=1, generator=seeded, output_type="latent").images

    dense = sample()
    ours = planner.compile(pipe, pattern="crisscross", group="2x3", **FORCE) and sample()
    (plan,) = planner.report(pipe.transformer).plans
    assert any(decision.is_sparse for decision in plan.decisions)
    assert not torch.equal(ours, dense)


def test_what_has_no_transformer_is_no_model():
    with pytest.raises(NotAModule):
        planner.compile("flux.1-dev")
