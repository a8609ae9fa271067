"""Latte (Ma et al., arXiv 2401.03048): latents as a video, attention over frames and over time in turn."""

from __future__ import annotations

from typing import Any

from planner.models.families.base import FAMILIES, Config, Family
from planner.models.families.latent import Latent

CLASS = "LatteTransformer3DModel"


def inputs(config: Config, x: Latent) -> dict[str, Any]:
    """Make what LattePipeline gives the transformer, with 120 tokens of text."""
    patch = config["patch_size"]
    return {
        "hidden_states": x.floats(config["in_channels"], x.t, x.h * patch, x.w * patch),
        "timestep": x.timestep(),
        "encoder_hidden_states": x.floats(120, config["caption_channels"]),
    }


FAMILIES.register(CLASS)(Family(inputs, video=True))
