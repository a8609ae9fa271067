"""CogVideoX (Yang et al., arXiv 2408.06072): latents frame by frame, T5 text in one sequence with them."""

from __future__ import annotations

from typing import Any

import torch

from planner.models.families.base import CATALOGUE, FAMILIES, Config, Entry, Family
from planner.models.families.latent import Latent

CLASS = "CogVideoXTransformer3DModel"


def inputs(config: Config, x: Latent) -> dict[str, Any]:
    """Make what CogVideoXPipeline gives the transformer; rotations of no angle where it takes any."""
    patch = config["patch_size"]
    kwargs: dict[str, Any] = {
        "hidden_states": x.floats(x.t, config["in_channels"], x.h * patch, x.w * patch),
        "encoder_hidden_states": x.floats(config["max_text_seq_length"], config["text_embed_dim"]),
        "timestep": x.timestep(),
    }
    if config.get("use_rotary_positional_embeddings"):
        angles = torch.zeros(x.tokens, config["attention_head_dim"], device=x.device)
        kwargs["image_rotary_emb"] = (angles.cos(), angles.sin())
    return kwargs


COGVIDEOX_5B = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 64,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 16,
    "max_text_seq_length": 226,
    "norm_elementwise_affine": True,
    "norm_eps": 1e-05,
    "num_attention_heads": 48,
    "num_layers": 42,
    "out_channels": 16,
    "patch_size": 2,
    "sample_frames": 49,
    "sample_height": 60,
    "sample_width": 90,
    "spatial_interpolation_scale": 1.875,
    "temporal_compression_ratio": 4,
    "temporal_interpolation_scale": 1.0,
    "text_embed_dim": 4096,
    "time_embed_dim": 512,
    "timestep_activation_fn": "silu",
    "use_rotary_positional_embeddings": True,
}

FAMILIES.register(CLASS)(Family(inputs, frames=4, video=True))
CATALOGUE.register("cogvideox-5b")(Entry(CLASS, COGVIDEOX_5B, 5_570_283_072, (720, 480), 49))
