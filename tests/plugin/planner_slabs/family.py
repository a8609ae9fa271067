"""AuraFlow (fal, 2024): latents as an image, T5 text in one sequence with them."""

from __future__ import annotations

from typing import Any

from planner.models.families.base import CATALOGUE, FAMILIES, Config, Entry, Family
from planner.models.families.latent import Latent

CLASS = "AuraFlowTransformer2DModel"


def inputs(config: Config, x: Latent) -> dict[str, Any]:
    """Make what AuraFlowPipeline gives the transformer, with 256 tokens of text."""
    patch = config["patch_size"]
    return {
        "hidden_states": x.floats(config["in_channels"], x.h * patch, x.w * patch),
        "encoder_hidden_states": x.floats(x.text or 256, config["joint_attention_dim"]),
        "timestep": x.each(0.5),
    }


AURAFLOW_V0_3 = {
    "attention_head_dim": 256,
    "caption_projection_dim": 3072,
    "in_channels": 4,
    "joint_attention_dim": 2048,
    "num_attention_heads": 12,
    "num_mmdit_layers": 4,
    "num_single_dit_layers": 32,
    "out_channels": 4,
    "patch_size": 2,
    "pos_embed_max_size": 9216,
    "sample_size": 64,
}

FAMILIES.register(CLASS)(Family(inputs))
CATALOGUE.register("auraflow-v0.3")(Entry(CLASS, AURAFLOW_V0_3, 6_858_605_568, (1024, 1024)))
