import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from planner.errors import BadOption, BadSize, UnknownName
from planner.models.emoji.sampling import Pipeline
from planner.models.emoji.text import Embeddings
from planner.models.families.base import FAMILIES, Family


class Oracle(torch.nn.Module):
    """Knows the image: a constant, which the prompt's pooled embedding names."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.calls = []


def oracle_velocity(model, x, sigma, text):
    """(x - image) / sigma, which every step of rectified flow integrates without error."""
    model.calls.append((len(x), sigma[0].item()))
    image = text.pooled[:, :1].view(-1, *[1] * (x.dim() - 1))
    return (x - image) / sigma.view(-1, *[1] * (x.dim() - 1))


def embed(prompts):
    values = torch.tensor([float(prompt or 0) for prompt in prompts])
    return Embeddings(torch.zeros(len(prompts), 64, 384), values[:, None].expand(-1, 384))


@pytest.fixture
def pipeline(monkeypatch):
    assert FAMILIES  # filled before an entry is added for one test
    monkeypatch.setitem(FAMILIES._entries, "Oracle", Family(dict, velocity=oracle_velocity))
    return Pipeline(Oracle(), FlowMatchEulerDiscreteScheduler(shift=3.0), embed, (3, 8, 8), guidance=1.0, steps=5)


def test_the_sampler_integrates_rectified_flow(pipeline):
    made = pipeline(["-0.5", "0.25"])
    assert torch.allclose(made, torch.tensor([0.25, 0.625]).view(2, 1, 1, 1).expand(2, 3, 8, 8), atol=1e-5)
    levels = [sigma for _, sigma in pipeline.transformer.calls]
    assert levels[0] == 1
    assert levels == sorted(levels, reverse=True)
    assert len(levels) == 5
    assert levels[-1] == pytest.approx(3 * 0.2 / (1 + 2 * 0.2))


def test_guidance_goes_beyond_the_prompt_and_doubles_the_batch(pipeline):
    made = pipeline(["0.25"], guidance=2.0)
    assert torch.allclose(made, torch.full((1, 3, 8, 8), (0.5 + 1) / 2), atol=1e-5)
    assert {count for count, _ in pipeline.transformer.calls} == {2}


def test_a_sample_depends_on_its_own_seed_alone(pipeline):
    seen = []
    pipeline(["0", "0"], seeds=[3, 9], steps=2, each_step=seen.append)
    pipeline(["0"], seeds=[9], steps=2, each_step=seen.append)
    assert torch.allclose(seen[0][1], seen[2][0])
    assert not torch.allclose(seen[0][0], seen[0][1])


def test_the_scheduler_of_the_pipeline_is_not_touched(pipeline):
    before = pipeline.scheduler.timesteps.clone()
    pipeline(["0"], steps=3)
    assert torch.equal(pipeline.scheduler.timesteps, before)


def test_using_another_transformer_changes_nothing_else(pipeline):
    other = Oracle()
    changed = pipeline.using(other)
    assert changed.transformer is other
    assert (changed.shape, changed.steps, changed.embed) == (pipeline.shape, pipeline.steps, pipeline.embed)


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 7), (3, 0, 8), (3, 2, 8, 8), (1, 8, 8)])
def test_impossible_shapes_are_refused(pipeline, shape):
    with pytest.raises(BadSize, match="3 axes and even sides"):
        pipeline(["0"], shape=shape)


@pytest.mark.parametrize("options", [{"steps": 0}, {"seeds": [1, 2]}])
def test_impossible_options_are_refused(pipeline, options):
    with pytest.raises(BadOption):
        pipeline(["0"], **options)


def test_no_prompts_are_refused(pipeline):
    with pytest.raises(BadOption):
        pipeline([])


def test_a_class_without_a_velocity_is_named(pipeline):
    other = torch.nn.Linear(1, 1)
    with pytest.raises(UnknownName, match=r"no family with a velocity 'Linear'.*\n.*FluxTransformer2DModel"):
        pipeline.using(other)(["0"])
