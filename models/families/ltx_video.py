"""LTX-Video (HaCohen et al., arXiv 2501.00103): latents packed to tokens of 32 pixels, masked T5 text."""

from __future__ import annotations

from typing import Any

import torch

from planner.models.families.base import CATALOGUE, FAMILIES, Config, Entry, Family
from planner.models.families.latent import Latent

CLASS = "LTXVideoTransformer3DModel"
TEXT = 128


def inputs(config: Config, x: Latent) -> dict[str, Any]:
    """Make what LTXPipeline gives the transformer, with 128 tokens of text, none of them masked."""
    return {
        "hidden_states": x.floats(x.tokens, config["in_channels"]),
        "encoder_hidden_states": x.floats(TEXT, config["caption_channels"]),
        "timestep": x.timestep(),
        "encoder_attention_mask": torch.ones(x.batch, TEXT, dtype=torch.int64),
        "num_frames": x.t,
        "height": x.h,
        "width": x.w,
    }


LTX_VIDEO = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 64,
    "attention_out_bias": True,
    "caption_channels": 4096,
    "cross_attention_dim": 2048,
    "in_channels": 128,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "num_attention_heads": 32,
    "num_layers": 28,
    "out_channels": 128,
    "patch_size": 1,
    "patch_size_t": 1,
    "qk_norm": "rms_norm_across_heads",
}

FAMILIES.register(CLASS)(Family(inputs, pixels=32, frames=8, video=True))
CATALOGUE.register("ltx-video")(Entry(CLASS, LTX_VIDEO, 1_923_385_472, (704, 512), 161))
