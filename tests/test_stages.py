"""A compiled transformer in a real pipeline, in the original's place and with nothing else changed."""

import diffusers
import torch
from zoo import flux

import planner
from planner.runtime.masked_dense import MaskedDense


def tiny_pipeline():
    transformer, _ = flux()
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        latent_channels=4,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = diffusers.FluxPipeline(scheduler, vae.eval(), None, None, None, None, transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe, height, width):
    embeds = torch.linspace(-1, 1, 8 * 32).view(1, 8, 32)
    return pipe(
        prompt_embeds=embeds,
        pooled_prompt_embeds=embeds[:, 0],
        height=height,
        width=width,
        num_inference_steps=3,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images


def test_flux_pipeline_from_prompt_to_picture():
    pipe = tiny_pipeline()
    transformer = pipe.transformer
    dense = picture(pipe, 24, 32)
    pipe.transformer = planner.compile(transformer, group="3x5", target="cpu", min_speedup=0.0)
    planned = [picture(pipe, *size) for size in ((24, 32), (32, 24), (24, 32))]
    report = planner.report(pipe.transformer)

    assert [plan.decisions[0].layout.split(" | ")[1] for plan in report.plans] == [
        "hidden_states[h:12 w:16]",
        "hidden_states[h:16 w:12]",
    ]
    assert report.calls == (6, 3)
    assert torch.equal(planned[0], planned[2])
    assert not torch.allclose(planned[0], dense, atol=1e-5)

    class Judged(torch.nn.Module):
        config, dtype, device = transformer.config, transformer.dtype, transformer.device
        cache_context = transformer.cache_context

        def forward(self, **kwargs):
            with MaskedDense(report.plans[0]):
                return transformer(**kwargs)

    pipe.transformer = Judged()
    torch.testing.assert_close(planned[0], picture(pipe, 24, 32), rtol=1e-4, atol=1e-4)
