"""HunyuanVideo (Kong et al., arXiv 2412.03603): latents as a video, masked Llama and pooled CLIP text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from planner.models.families.base import CATALOGUE, FAMILIES, PIXEL_SPACE, Config, Entry, Family
from planner.models.families.latent import Latent

if TYPE_CHECKING:
    from planner.models.emoji.text import Embeddings

CLASS = "HunyuanVideoTransformer3DModel"


def inputs(config: Config, x: Latent) -> dict[str, Any]:
    """Make what HunyuanVideoPipeline gives the transformer; text is 256 tokens by default, none of them masked."""
    text, patch = x.text or 256, config["patch_size"]
    kwargs = {
        "hidden_states": x.floats(config["in_channels"], x.t * config["patch_size_t"], x.h * patch, x.w * patch),
        "timestep": x.timestep(),
        "encoder_hidden_states": x.floats(text, config["text_embed_dim"]),
        "encoder_attention_mask": torch.ones(x.batch, text, dtype=torch.int64),
        "pooled_projections": x.floats(config["pooled_projection_dim"]),
    }
    return kwargs | ({"guidance": x.each(6000.0)} if config.get("guidance_embeds") else {})


def velocity(model: torch.nn.Module, x: torch.Tensor, sigma: torch.Tensor, text: Embeddings) -> torch.Tensor:
    """Predict the velocity of clips.

    x: (batch, 3, frames, height, width). sigma: (batch,), 1 is pure noise. Returns the shape of x.
    """
    (out,) = model(
        hidden_states=x,
        timestep=sigma * 1000,
        encoder_hidden_states=text.tokens,
        encoder_attention_mask=torch.ones(text.tokens.shape[:2], device=x.device),
        pooled_projections=text.pooled,
        return_dict=False,
    )
    return out


HUNYUAN_VIDEO = {
    "attention_head_dim": 128,
    "guidance_embeds": True,
    "in_channels": 16,
    "mlp_ratio": 4.0,
    "num_attention_heads": 24,
    "num_layers": 20,
    "num_refiner_layers": 2,
    "num_single_layers": 40,
    "out_channels": 16,
    "patch_size": 2,
    "patch_size_t": 1,
    "pooled_projection_dim": 768,
    "qk_norm": "rms_norm",
    "rope_axes_dim": [16, 56, 56],
    "rope_theta": 256.0,
    "text_embed_dim": 4096,
}
EMOJI = {
    "attention_head_dim": 64,
    "guidance_embeds": False,
    "in_channels": 3,
    "mlp_ratio": 4.0,
    "num_attention_heads": 4,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "num_single_layers": 4,
    "out_channels": 3,
    "patch_size": 2,
    "patch_size_t": 1,
    "pooled_projection_dim": 384,
    "qk_norm": "rms_norm",
    "rope_axes_dim": [16, 24, 24],
    "rope_theta": 256.0,
    "text_embed_dim": 384,
}

FAMILIES.register(CLASS)(Family(inputs, frames=4, video=True, velocity=velocity))
CATALOGUE.register("hunyuanvideo")(Entry(CLASS, HUNYUAN_VIDEO, 12_821_012_544, (1280, 720), 129))
CATALOGUE.register("emoji-hunyuan")(Entry(CLASS, EMOJI, 10_428_172, (64, 64), 8, trained=True, scale=PIXEL_SPACE))
