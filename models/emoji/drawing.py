"""Grids of samples as PNG, or as animated WebP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from planner.plan.atomic_write import replacing


def save_grid(path: Path, samples: torch.Tensor, columns: int = 8) -> None:
    """Write samples in [0, 1], (n, 3, h, w) or (n, 3, frames, h, w), as one image, or one animation in a WebP."""
    frames = samples.unsqueeze(2) if samples.dim() == 4 else samples
    rows = -(-len(frames) // columns)
    frames = torch.cat([frames, frames.new_ones(rows * columns - len(frames), *frames.shape[1:])])
    _, c, t, h, w = frames.shape
    grid = frames.view(rows, columns, c, t, h, w).permute(3, 0, 4, 1, 5, 2).reshape(t, rows * h, columns * w, c)
    images = [Image.fromarray(image) for image in (grid.float().cpu().numpy() * 255).round().astype(np.uint8)]
    with replacing(path) as scratch:
        images[0].save(scratch, save_all=True, append_images=images[1:], duration=133, loop=0, quality=90)
