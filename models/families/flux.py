"""FLUX.1 (Black Forest Labs, 2024): latents packed to tokens, position ids, T5 and pooled CLIP text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from planner.models.families.base import CATALOGUE, FAMILIES, PIXEL_SPACE, Config, Entry, Family
from planner.models.families.latent import Latent

if TYPE_CHECKING:
    from planner.models.emoji.text import Embeddings

CLASS = "FluxTransformer2DModel"
PATCH = PIXEL_SPACE.pixels
TRAINED_SIDE = 64
"""Position ids of emoji-flux count the tokens of a 128-pixel image, at every size."""


def flux_ids(h: int, w: int) -> torch.Tensor:
    """Make the position ids (h * w, 3) of an image: zero, row, column."""
    ids = torch.zeros(h, w, 3)
    ids[..., 1] += torch.arange(h)[:, None]
    ids[..., 2] += torch.arange(w)[None, :]
    return ids.view(-1, 3)


def inputs(config: Config, x: Latent) -> dict[str, Any]:
    """Make what FluxPipeline gives the transformer; text is 512 tokens by default."""
    text = x.text or 512
    kwargs = {
        "hidden_states": x.floats(x.tokens, config["in_channels"]),
        "encoder_hidden_states": x.floats(text, config["joint_attention_dim"]),
        "pooled_projections": x.floats(config["pooled_projection_dim"]),
        "timestep": x.each(0.5),
        "img_ids": flux_ids(x.h, x.w),
        "txt_ids": torch.zeros(text, 3),
    }
    return kwargs | ({"guidance": x.each(3.5)} if config.get("guidance_embeds") else {})


def velocity(model: torch.nn.Module, x: torch.Tensor, sigma: torch.Tensor, text: Embeddings) -> torch.Tensor:
    """Predict the velocity of images, in patches of 2 by 2 pixels.

    x: (batch, 3, height, width). sigma: (batch,), 1 is pure noise. Returns the shape of x.
    """
    h, w = x.shape[2] // PATCH, x.shape[3] // PATCH
    packed = F.pixel_unshuffle(x, PATCH).flatten(2).transpose(1, 2)
    (out,) = model(
        hidden_states=packed,
        encoder_hidden_states=text.tokens,
        pooled_projections=text.pooled,
        timestep=sigma,
        img_ids=flux_ids(h, w).to(x.device) * (TRAINED_SIDE / max(h, w)),
        txt_ids=torch.zeros(text.tokens.shape[1], 3, device=x.device),
        return_dict=False,
    )
    return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (h, w)), PATCH)


DEV = {
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}
EMOJI = {
    "attention_head_dim": 64,
    "axes_dims_rope": [8, 28, 28],
    "guidance_embeds": False,
    "in_channels": 12,
    "joint_attention_dim": 384,
    "num_attention_heads": 4,
    "num_layers": 2,
    "num_single_layers": 8,
    "patch_size": 1,
    "pooled_projection_dim": 384,
}

FAMILIES.register(CLASS)(Family(inputs, velocity=velocity))
CATALOGUE.register("flux.1-dev")(Entry(CLASS, DEV, 11_901_408_320, (1024, 1024)))
CATALOGUE.register("flux.1-schnell")(Entry(CLASS, DEV | {"guidance_embeds": False}, 11_891_178_560, (1024, 1024)))
CATALOGUE.register("emoji-flux")(Entry(CLASS, EMOJI, 13_154_828, (128, 128), trained=True, scale=PIXEL_SPACE))
