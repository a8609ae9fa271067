import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from planner.errors import BadOption, BadSize
from planner.models.emoji import sampling
from planner.models.emoji.sampling import Pipeline, flux_velocity, hunyuan_velocity
from planner.models.emoji.text import Embeddings


class Oracle(torch.nn.Module):
    """Knows the picture: a constant, which the prompt's pooled embedding names."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.calls = []


def oracle_velocity(model, x, sigma, text):
    """(x - picture) / sigma, which every step of rectified flow integrates without error."""
    model.calls.append((len(x), sigma[0].item()))
    picture = text.pooled[:, :1].view(-1, *[1] * (x.dim() - 1))
    return (x - picture) / sigma.view(-1, *[1] * (x.dim() - 1))


def embed(prompts):
    values = torch.tensor([float(prompt or 0) for prompt in prompts])
    return Embeddings(torch.zeros(len(prompts), 64, 384), values[:, None].expand(-1, 384))


@pytest.fixture
def pipeline(monkeypatch):
    monkeypatch.setitem(sampling.VELOCITIES, "Oracle", oracle_velocity)
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


def test_flux_packs_two_by_two_pixels_in_raster_order():
    given = {}

    def model(**kwargs):
        given.update(kwargs)
        return (kwargs["hidden_states"],)

    x = torch.randn(2, 3, 8, 16)
    text = Embeddings(torch.zeros(2, 64, 384), torch.zeros(2, 384))
    assert torch.equal(flux_velocity(model, x, torch.ones(2), text), x)
    packed, ids = given["hidden_states"], given["img_ids"]
    assert packed.shape == (2, 4 * 8, 12)
    assert torch.equal(packed[0, 9].view(3, 2, 2), x[0, :, 2:4, 2:4])
    assert ids[9].tolist() == [0, 8, 8]


def test_positions_do_not_depend_on_the_resolution():
    seen = []

    def model(**kwargs):
        seen.append(kwargs["img_ids"])
        return (kwargs["hidden_states"],)

    text = Embeddings(torch.zeros(1, 64, 384), torch.zeros(1, 384))
    for side in (32, 128, 256):
        flux_velocity(model, torch.zeros(1, 3, side, side), torch.ones(1), text)
    assert [ids[:, 1].max().item() for ids in seen] == [60, 63, 63.5]
    assert [ids[1, 2].item() for ids in seen] == [4, 1, 0.5]


def test_hunyuan_counts_noise_to_a_thousand_and_masks_no_text():
    given = {}

    def model(**kwargs):
        given.update(kwargs)
        return (kwargs["hidden_states"],)

    x = torch.randn(1, 3, 2, 8, 8)
    text = Embeddings(torch.zeros(1, 64, 384), torch.zeros(1, 384))
    assert torch.equal(hunyuan_velocity(model, x, torch.tensor([0.25]), text), x)
    assert given["timestep"].item() == 250
    assert given["encoder_attention_mask"].all()
