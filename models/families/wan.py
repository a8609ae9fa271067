"""Wan 2.1 (Wan team, arXiv 2503.20314): latents as a video, T5 text through cross-attention."""

from __future__ import annotations

from typing import Any

from planner.models.families.base import CATALOGUE, FAMILIES, Config, Entry, Family
from planner.models.families.latent import Latent

CLASS = "WanTransformer3DModel"


def inputs(config: Config, x: Latent) -> dict[str, Any]:
    """Make what WanPipeline gives the transformer, with 512 tokens of text."""
    t, h, w = config["patch_size"]
    return {
        "hidden_states": x.floats(config["in_channels"], x.t * t, x.h * h, x.w * w),
        "timestep": x.timestep(),
        "encoder_hidden_states": x.floats(512, config["text_dim"]),
    }


SMALL = {
    "attention_head_dim": 128,
    "cross_attn_norm": True,
    "eps": 1e-06,
    "ffn_dim": 8960,
    "freq_dim": 256,
    "in_channels": 16,
    "num_attention_heads": 12,
    "num_layers": 30,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 1024,
    "text_dim": 4096,
}
LARGE = SMALL | {"ffn_dim": 13824, "num_attention_heads": 40, "num_layers": 40}

FAMILIES.register(CLASS)(Family(inputs, frames=4, video=True))
CATALOGUE.register("wan2.1-1.3b")(Entry(CLASS, SMALL, 1_418_996_800, (832, 480), 81))
CATALOGUE.register("wan2.1-14b")(Entry(CLASS, LARGE, 14_288_491_584, (1280, 720), 81))
