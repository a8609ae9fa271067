"""Qwen-Image (Qwen team, arXiv 2508.02324): latents packed to tokens, their extents as a list, masked text."""

from __future__ import annotations

from typing import Any

import torch

from planner.models.families.base import CATALOGUE, FAMILIES, Config, Entry, Family
from planner.models.families.latent import Latent

CLASS = "QwenImageTransformer2DModel"
TEXT = 512


def inputs(config: Config, x: Latent) -> dict[str, Any]:
    """Make what QwenImagePipeline gives the transformer, with 512 tokens of text, none of them masked."""
    return {
        "hidden_states": x.floats(x.tokens, config["in_channels"]),
        "encoder_hidden_states": x.floats(TEXT, config["joint_attention_dim"]),
        "encoder_hidden_states_mask": torch.ones(x.batch, TEXT, dtype=torch.int64),
        "timestep": x.each(0.5),
        "img_shapes": [[(1, x.h, x.w)]] * x.batch,
    }


QWEN_IMAGE = {
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": False,
    "in_channels": 64,
    "joint_attention_dim": 3584,
    "num_attention_heads": 24,
    "num_layers": 60,
    "out_channels": 16,
    "patch_size": 2,
}

FAMILIES.register(CLASS)(Family(inputs))
CATALOGUE.register("qwen-image")(Entry(CLASS, QWEN_IMAGE, 20_430_401_088, (1328, 1328)))
