"""PixArt-Σ (Chen et al., arXiv 2403.04692): latents as an image, T5 text through cross-attention."""

from __future__ import annotations

from typing import Any

from planner.models.families.base import FAMILIES, Config, Family
from planner.models.families.latent import Latent

CLASS = "PixArtTransformer2DModel"


def inputs(config: Config, x: Latent) -> dict[str, Any]:
    """Make what PixArtSigmaPipeline gives the transformer, with 300 tokens of text."""
    patch = config["patch_size"]
    return {
        "hidden_states": x.floats(config["in_channels"], x.h * patch, x.w * patch),
        "encoder_hidden_states": x.floats(300, config["caption_channels"]),
        "timestep": x.timestep(),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


FAMILIES.register(CLASS)(Family(inputs))
