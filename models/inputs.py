"""Example inputs: what a pipeline would pass to each model class for images or videos of a size."""

from __future__ import annotations

from typing import Any

import torch

from planner.errors import BadOption, BadSize, NoExampleInputs
from planner.models.families.base import FAMILIES, Config, Family, Scale
from planner.models.families.latent import Latent

MAX_PIXELS = 2**36
"""Pixels of a sample, over all frames."""


def example_inputs(
    config: Config,
    size: tuple[int, int],
    frames: int = 1,
    *,
    batch: int = 1,
    device: str = "meta",
    dtype: torch.dtype = torch.bfloat16,
    scale: Scale | None = None,
) -> dict[str, Any]:
    """Make keyword arguments of a model's forward for samples of size (width, height) pixels and so many frames.

    Tensors that hold images or text are on ``device`` (meta: no memory); masks and position ids have values.
    scale: pixels and frames of a token and text tokens, where they are not those of the class's public models.
    Raises NoExampleInputs for a class without a family, BadSize for a size that makes no whole tokens, and
    BadOption for frames of a model of still images.
    """
    name = str(config["_class_name"])
    if name not in FAMILIES:
        raise NoExampleInputs(name, FAMILIES)
    family = FAMILIES[name]
    if not 1 <= batch <= 1024:
        raise BadOption("batch", batch, "a number between 1 and 1024")
    if frames != 1 and not family.video:
        raise BadOption("frames", frames, f"1 for {name}, a model of still images")
    t, h, w = _grid(name, size, frames, scale or family)
    latent = Latent(batch, t, h, w, torch.device(device), dtype, scale.text if scale else None)
    return family.inputs(config, latent)


def _grid(name: str, size: tuple[int, int], frames: int, scale: Scale | Family) -> tuple[int, int, int]:
    """Count the tokens (t, h, w) of a sample."""
    (width, height), p, step = size, scale.pixels, scale.frames
    shape = f"{width}x{height}"
    if width < p or height < p or width % p or height % p:
        near = "x".join(str(max(p, round(side / p) * p)) for side in size)
        raise BadSize(shape, f"{name} takes multiples of {p} pixels", f"The nearest is {near}.")
    if width * height * frames > MAX_PIXELS:
        raise BadSize(shape, f"{width * height * frames} pixels are more than 2**36", "Ask for a smaller size.")
    if frames < 1 or (frames - 1) % step:
        near = max(0, round((frames - 1) / step)) * step + 1
        raise BadSize(f"{frames} frames", f"{name} takes 1 + a multiple of {step}", f"The nearest is {near}.")
    return (frames - 1) // step + 1, height // p, width // p
