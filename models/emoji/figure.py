"""Labelled figures of samples beside their dense counterparts: images as PNG, clips as animated WebP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

MARGIN, GAP, TEXT = 16, 8, 15
"""Pixels around the figure and between its cells, and the height of its letters."""

LINE = TEXT + 5
RAMP = torch.tensor([[0.0, 0.0, 0.0], [0.35, 0.05, 0.45], [0.85, 0.25, 0.3], [1.0, 0.65, 0.2], [1.0, 1.0, 0.85]])
"""Colours of a difference from none to the greatest, at equal distances."""


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Cell:
    """A sample with the caption above it.

    pixels: (3, [frames,] height, width) in [0, 1], or a difference ([frames,] height, width). caption: lines of text.
    """

    pixels: torch.Tensor
    caption: str

    @property
    def is_difference(self) -> bool:
        """Whether the pixels are a difference, which is drawn in colours of its size."""
        return self.pixels.dim() < 3 or self.pixels.shape[0] != 3


def difference(sample: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference over channels, (…), of two samples (3, …) in [0, 1]."""
    return (sample - dense).abs().mean(0)


def draw_figure(path: Path, rows: Sequence[tuple[str, Sequence[Cell]]], title: str, side: int = 256) -> float:
    """Draw rows of cells with their labels into a file; return the difference that the brightest colour stands for.

    rows: (label, cells), as many cells in each. side: pixels of a cell's longer side, which samples are enlarged to.
    The scale of differences is one for the whole figure, from 0 to the greatest, and is drawn below it.
    """
    cells = [cell for _, row in rows for cell in row]
    greatest = max((float(cell.pixels.max()) for cell in cells if cell.is_difference), default=0.0) or 1.0
    clips = [[_frames(cell, greatest, side) for cell in row] for _, row in rows]
    count = max(len(clip) for row in clips for clip in row)
    labels = [label for label, _ in rows]
    captions = [[cell.caption for cell in row] for _, row in rows]
    pages = [_page(title, labels, captions, clips, at, greatest) for at in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=133, loop=0, quality=90)
    return greatest


def _frames(cell: Cell, greatest: float, side: int) -> list[Image.Image]:
    pixels = cell.pixels.float().cpu()
    if cell.is_difference:
        pixels = _colours(pixels / greatest)
    frames = pixels.unsqueeze(1) if pixels.dim() == 3 else pixels
    scale = max(1, side // max(frames.shape[-2:]))
    enlarged = F.interpolate(frames.transpose(0, 1), scale_factor=scale)
    shown = (enlarged.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return [Image.fromarray(frame.numpy()) for frame in shown]


def _colours(shares: torch.Tensor) -> torch.Tensor:
    """Return the colours (3, …) of shares (…) of the greatest difference."""
    positions = shares.clamp(0, 1) * (len(RAMP) - 1)
    below = positions.floor().long().clamp(max=len(RAMP) - 2)
    return torch.lerp(RAMP[below], RAMP[below + 1], (positions - below).unsqueeze(-1)).movedim(-1, 0)


def _page(
    title: str,
    labels: Sequence[str],
    captions: Sequence[Sequence[str]],
    clips: Sequence[Sequence[list[Image.Image]]],
    at: int,
    greatest: float,
) -> Image.Image:
    width, height = clips[0][0][0].size
    columns, lines = len(clips[0]), max(caption.count("\n") + 1 for row in captions for caption in row)
    above = LINE * (lines + 1)  # the label of a row, and the captions of its cells
    whole = (
        2 * MARGIN + columns * width + (columns - 1) * GAP,
        2 * MARGIN + 2 * LINE + len(clips) * (above + height + GAP) + 2 * LINE,
    )
    page = Image.new("RGB", whole, "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(TEXT)
    draw.text((MARGIN, MARGIN), title, "black", font)
    top = MARGIN + 2 * LINE
    for label, row, cells in zip(labels, captions, clips, strict=True):
        draw.text((MARGIN, top), label, "black", font)
        for column, (caption, clip) in enumerate(zip(row, cells, strict=True)):
            left = MARGIN + column * (width + GAP)
            draw.multiline_text((left, top + LINE), caption, "black", font)
            page.paste(clip[at % len(clip)], (left, top + above))
        top += above + height + GAP
    _draw_scale(page, draw, font, top, greatest)
    return page


def _draw_scale(page: Image.Image, draw: ImageDraw.ImageDraw, font: Font, top: int, most: float) -> None:
    """Draw the scale of the colours of differences."""
    text = "difference from dense, mean of the three channels:  0 "
    draw.text((MARGIN, top + LINE // 2), text, "black", font)
    left = MARGIN + round(draw.textlength(text, font)) + GAP
    bar = (_colours(torch.linspace(0, 1, 200)) * 255).round().to(torch.uint8).T
    page.paste(Image.fromarray(bar.expand(TEXT, 200, 3).numpy()), (left, top + LINE // 2))
    draw.text((left + 200 + GAP, top + LINE // 2), f"{most:.2f} of 1", "black", font)
