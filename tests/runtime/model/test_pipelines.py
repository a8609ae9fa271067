"""Pipelines of diffusers, small and random, from a prompt to images, with nothing changed but the transformer."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from zoo import FORCE, GROUPS
from zoo.pictures import FLUX
from zoo.pipelines import PIPELINES, flux, sd3

import planner
from planner.runtime.attention import dispatch
from planner.runtime.masked_dense import masked_model

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def sparse_levels(monkeypatch):
    """Record the noise levels of all calls of planned attention, and of those that ran under a pattern."""
    levels, sparse = [], []

    def attend(*args, noise=None, **kwargs):
        levels.append(round(noise.item(), 4))
        return plain_attend(*args, noise=noise, **kwargs)

    def grouped(*args, **kwargs):
        sparse.append(levels[-1])
        return plain_grouped(*args, **kwargs)

    plain_attend, plain_grouped = dispatch.attend, dispatch.grouped_sdpa
    monkeypatch.setattr("planner.runtime.attention.operator.attend", attend)
    monkeypatch.setattr(dispatch, "grouped_sdpa", grouped)
    return levels, sparse


def quiet(pipeline_and_inputs):
    pipe, inputs = pipeline_and_inputs
    pipe.set_progress_bar_config(disable=True)
    return pipe, inputs | {"output_type": "np"}


def paint(pipe, inputs, steps=6, **more):
    images, *_ = pipe(
        **inputs, **more, num_inference_steps=steps, generator=torch.Generator().manual_seed(1), return_dict=False
    )
    return np.asarray(images)


def assert_planned(pipe, inputs, group, steps=2, **more):
    """Check a pipeline with a planned transformer against masked dense attention; return the plan."""
    original = pipe.transformer
    pipe.transformer = planner.compile(original, pattern="crisscross", group=group, **FORCE)
    ours = paint(pipe, inputs, steps, **more)
    report = planner.report(pipe.transformer)
    plan, *_ = report.plans
    assert not any(report.intercepted)
    assert any(decision.is_sparse for decision in plan.decisions)
    pipe.transformer = masked_model(original, plan)
    judged = paint(pipe, inputs, steps, **more)
    pipe.transformer = original
    dense = paint(pipe, inputs, steps, **more)
    np.testing.assert_allclose(ours, judged, atol=1e-4)
    assert np.abs(judged - dense).max() > 20 * np.abs(ours - judged).max()
    return plan


@pytest.mark.parametrize("name", PIPELINES)
def test_from_a_prompt_to_images_with_nothing_changed_but_the_transformer(name):
    assert_planned(*quiet(PIPELINES[name]()), GROUPS.get(name, "1x3x5"))


def image():
    return Image.fromarray((torch.rand(48, 64, 3) * 255).byte().numpy())


def test_inpainting():
    pipe, inputs = quiet(flux(diffusers.FluxInpaintPipeline))
    assert_planned(pipe, inputs, "3x5", 3, image=image(), mask_image=image().convert("L"), strength=0.9)


def test_a_controlnet_steers_a_planned_transformer():
    controlnet = diffusers.FluxControlNetModel(**FLUX).eval()
    for weights in controlnet.parameters():  # its last layers begin at zero
        torch.nn.init.normal_(weights, std=0.1)
    pipe, inputs = quiet(flux(diffusers.FluxControlNetPipeline, controlnet=controlnet))
    plan = assert_planned(pipe, inputs, "3x5", control_image=image(), controlnet_conditioning_scale=0.7)
    assert "controlnet_block_samples.0=" in plan.inputs
    assert [decision.layout for decision in plan.decisions] == [
        "encoder_hidden_states:16 | hidden_states[h:12 w:16]"
    ] * 2


@pytest.mark.parametrize("make", [flux, sd3])
def test_a_gated_pipeline_is_dense_first_every_time_it_is_called(make, sparse_levels):
    pipe, inputs = quiet(make())
    levels, sparse = sparse_levels
    pipe.transformer = planner.compile(pipe.transformer, group="3x5", sparse_below=0.8, **FORCE)
    for _ in range(2):
        levels.clear(), sparse.clear()
        paint(pipe, inputs)
        sigmas = [round(sigma, 4) for sigma in pipe.scheduler.sigmas.tolist()[:-1]]
        assert sorted(set(levels), reverse=True) == sigmas
        assert set(sparse) == {sigma for sigma in sigmas if sigma <= 0.8}
        assert 0 < len(sparse) < len(levels)
    assert planner.report(pipe.transformer).calls == (12,)


def test_image_to_image_skips_the_levels_above_its_strength(sparse_levels):
    pipe, inputs = quiet(flux(diffusers.FluxImg2ImgPipeline))
    levels, sparse = sparse_levels
    pipe.transformer = planner.compile(pipe.transformer, group="3x5", sparse_below=0.8, **FORCE)
    for strength in (1.0, 0.4):
        levels.clear(), sparse.clear()
        paint(pipe, inputs, image=image(), strength=strength)
        assert set(sparse) == {level for level in levels if level <= 0.8}
    assert max(levels) < 0.8
    assert sparse == levels
