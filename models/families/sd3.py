"""Stable Diffusion 3.5 (Esser et al. 2024): latents as an image, three text encoders in one sequence."""

from __future__ import annotations

from typing import Any

from planner.models.families.base import CATALOGUE, FAMILIES, Config, Entry, Family
from planner.models.families.latent import Latent

CLASS = "SD3Transformer2DModel"


def inputs(config: Config, x: Latent) -> dict[str, Any]:
    """Make what StableDiffusion3Pipeline gives the transformer: 77 tokens of CLIP and 256 of T5."""
    patch = config["patch_size"]
    return {
        "hidden_states": x.floats(config["in_channels"], x.h * patch, x.w * patch),
        "encoder_hidden_states": x.floats(333, config["joint_attention_dim"]),
        "pooled_projections": x.floats(config["pooled_projection_dim"]),
        "timestep": x.timestep(),
    }


LARGE = {
    "attention_head_dim": 64,
    "caption_projection_dim": 2432,
    "dual_attention_layers": [],
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 38,
    "num_layers": 38,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
    "sample_size": 128,
}

FAMILIES.register(CLASS)(Family(inputs))
CATALOGUE.register("sd3.5-large")(Entry(CLASS, LARGE, 8_056_627_520, (1024, 1024)))
