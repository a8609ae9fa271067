"""Pipelines of diffusers, small and random, from embeddings to pictures, with nothing changed but the transformer."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from zoo import FAMILIES, FORCE

import planner
from runtime import dispatch
from runtime.reference import MaskedDense


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def sparse_levels(monkeypatch):
    """The noise level of every attention that ran under its pattern, and of every one that was asked for."""
    asked, sparse = [], []

    def attend(*args, noise=None, **kwargs):
        asked.append(round(noise.item(), 4))
        return plain_attend(*args, noise=noise, **kwargs)

    def grouped(*args, **kwargs):
        sparse.append(asked[-1])
        return plain_grouped(*args, **kwargs)

    plain_attend, plain_grouped = dispatch.attend, dispatch.grouped_sdpa
    monkeypatch.setattr("runtime.operator.attend", attend)
    monkeypatch.setattr(dispatch, "grouped_sdpa", grouped)
    return asked, sparse


def vae():
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=64,
        shift_factor=0.0,
    ).eval()


def flux(kind=diffusers.FluxPipeline):
    transformer, inputs = FAMILIES["flux"]()
    pipe = kind(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe, {
        "prompt_embeds": inputs["encoder_hidden_states"][:1],
        "pooled_prompt_embeds": inputs["pooled_projections"][:1],
        "height": 48,
        "width": 64,
        "output_type": "np",
    }


def sd3():
    transformer, inputs = FAMILIES["sd3"]()
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(),
        **dict.fromkeys(
            ["text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"]
        ),
    )
    pipe.set_progress_bar_config(disable=True)
    words, pooled = inputs["encoder_hidden_states"], inputs["pooled_projections"]
    return pipe, {
        "prompt_embeds": words[:1],
        "negative_prompt_embeds": words[1:],
        "pooled_prompt_embeds": pooled[:1],
        "negative_pooled_prompt_embeds": pooled[1:],
        "height": 48,
        "width": 64,
        "output_type": "np",
    }


def paint(pipe, inputs, **more):
    return pipe(**inputs, **more, num_inference_steps=6, generator=torch.Generator().manual_seed(1)).images


@pytest.mark.parametrize("make", [flux, sd3])
def test_a_planned_pipeline_paints_what_masked_dense_attention_paints(make):
    pipe, inputs = make()
    original = pipe.transformer
    pipe.transformer = planner.compile(original, pattern="crisscross", group="3x5", **FORCE)
    ours = paint(pipe, inputs)
    report = planner.report(pipe.transformer)
    (plan,) = report.plans
    assert report.calls == (6,)
    pipe.transformer = original
    dense = paint(pipe, inputs)
    forward = original.forward

    def judged_forward(*args, **kwargs):
        with MaskedDense(plan):
            return forward(*args, **kwargs)

    original.forward = judged_forward
    judged = paint(pipe, inputs)
    np.testing.assert_allclose(ours, judged, atol=1e-4)
    assert np.abs(ours - dense).max() > 1e-4


@pytest.mark.parametrize("make", [flux, sd3])
def test_a_gated_pipeline_is_dense_first_every_time_it_is_called(make, sparse_levels):
    pipe, inputs = make()
    asked, sparse = sparse_levels
    pipe.transformer = planner.compile(pipe.transformer, group="3x5", sparse_below=0.8, **FORCE)
    for _ in range(2):
        asked.clear(), sparse.clear()
        paint(pipe, inputs)
        sigmas = [round(sigma, 4) for sigma in pipe.scheduler.sigmas.tolist()[:-1]]
        assert sorted(set(asked), reverse=True) == sigmas
        assert set(sparse) == {sigma for sigma in sigmas if sigma <= 0.8}
        assert 0 < len(sparse) < len(asked)
    assert planner.report(pipe.transformer).calls == (12,)


def test_image_to_image_starts_where_it_starts(sparse_levels):
    pipe, inputs = flux(diffusers.FluxImg2ImgPipeline)
    asked, sparse = sparse_levels
    pipe.transformer = planner.compile(pipe.transformer, group="3x5", sparse_below=0.8, **FORCE)
    picture = Image.fromarray((torch.rand(48, 64, 3) * 255).byte().numpy())
    for strength in (1.0, 0.4):
        asked.clear(), sparse.clear()
        paint(pipe, inputs, image=picture, strength=strength)
        assert set(sparse) == {level for level in asked if level <= 0.8}
    assert max(asked) < 0.8
    assert sparse == asked
