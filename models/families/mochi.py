"""Mochi 1 (Genmo, 2024): latents as a video, masked T5 text whose masked tokens leave the sequence."""

from __future__ import annotations

from typing import Any

import torch

from planner.models.families.base import CATALOGUE, FAMILIES, Config, Entry, Family
from planner.models.families.latent import Latent

CLASS = "MochiTransformer3DModel"


def inputs(config: Config, x: Latent) -> dict[str, Any]:
    """Make what MochiPipeline gives the transformer, none of its text masked."""
    patch, text = config["patch_size"], config["max_sequence_length"]
    return {
        "hidden_states": x.floats(config["in_channels"], x.t, x.h * patch, x.w * patch),
        "encoder_hidden_states": x.floats(text, config["text_embed_dim"]),
        "timestep": x.timestep(),
        "encoder_attention_mask": torch.ones(x.batch, text, dtype=torch.bool),
    }


MOCHI = {
    "activation_fn": "swiglu",
    "attention_head_dim": 128,
    "in_channels": 12,
    "max_sequence_length": 256,
    "num_attention_heads": 24,
    "num_layers": 48,
    "out_channels": None,
    "patch_size": 2,
    "pooled_projection_dim": 1536,
    "qk_norm": "rms_norm",
    "text_embed_dim": 4096,
    "time_embed_dim": 256,
}

FAMILIES.register(CLASS)(Family(inputs, frames=6, video=True))
CATALOGUE.register("mochi")(Entry(CLASS, MOCHI, 10_027_677_744, (848, 480), 163))
