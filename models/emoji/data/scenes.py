"""Scenes: one to four emoji on plain or gradient backgrounds, each with its prompt and exact masks.

A scene is planned on the CPU (its emoji, their positions, its prompt) and painted on any device, a batch at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from planner.models.emoji.data.sprites import Sprites

SLOTS = 4
MORE = (0.8, 0.91, 0.96, 1.0)
"""Shares of the scenes that have at most one, two, three and four emoji."""
COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (20, 20, 22),
    "gray": (140, 142, 146),
    "red": (214, 60, 56),
    "orange": (243, 148, 58),
    "yellow": (250, 214, 84),
    "green": (88, 172, 96),
    "teal": (58, 160, 160),
    "blue": (70, 120, 216),
    "purple": (140, 92, 196),
    "pink": (244, 158, 190),
    "brown": (140, 98, 70),
}
ARRANGEMENTS: dict[int, tuple[tuple[tuple[str, float, float], ...], ...]] = {
    2: ((("on the left", -0.48, 0.0), ("on the right", 0.48, 0.0)), (("above", 0.0, -0.48), ("below", 0.0, 0.48))),
    3: ((("at the top", 0.0, -0.48), ("bottom left", -0.48, 0.46), ("bottom right", 0.48, 0.46)),),
    4: (
        (
            ("top left", -0.48, -0.48),
            ("top right", 0.48, -0.48),
            ("bottom left", -0.48, 0.48),
            ("bottom right", 0.48, 0.48),
        ),
    ),
}
"""For each number of emoji the arrangements: words, and the centre in a square from -1 to 1, right and down."""


@dataclass(frozen=True)
class Placement:
    """One emoji in a scene: its sprite, centre in [-1, 1] (x right, y down), and side as a share of the image's."""

    sprite: int
    x: float
    y: float
    side: float


@dataclass(frozen=True)
class Scene:
    """A prompt, the emoji with their positions, and two background colours: at the top left and at the bottom right."""

    prompt: str
    placements: tuple[Placement, ...]
    background: tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Painted:
    """Painted scenes.

    images: (batch, 3, frames, size, size) in [-1, 1]. masks: (batch, 4, frames, size, size) in [0, 1], what is seen
    of each emoji, in the order of the scene.
    """

    images: torch.Tensor
    masks: torch.Tensor


def plan_scene(rng: np.random.Generator, sprites: Sprites, count: int | None = None) -> Scene:
    """Draw a random scene of ``count`` emoji; by default four scenes of five have one emoji, the others up to four."""
    n = int(np.searchsorted(MORE, rng.random())) + 1 if count is None else count
    chosen = sprites.draw(rng, n)
    behind, background = _background(rng)
    if n == 1:
        size, side = _size(rng)
        jitter = rng.uniform(-1, 1, 2) * max(0.0, 0.94 - side)
        where, placements = [""], [Placement(int(chosen[0]), float(jitter[0]), float(jitter[1]), side)]
    else:
        size = ""
        arrangement = ARRANGEMENTS[n][rng.integers(len(ARRANGEMENTS[n]))]
        where = [f" {words}" for words, _, _ in arrangement]
        placements = [
            Placement(int(sprite), x + rng.uniform(-0.04, 0.04), y + rng.uniform(-0.04, 0.04), rng.uniform(0.4, 0.5))
            for sprite, (_, x, y) in zip(chosen, arrangement, strict=True)
        ]
    emoji = ", ".join(f"{size}{sprites.names[p.sprite]}{w}" for p, w in zip(placements, where, strict=True))
    return Scene(emoji + behind, tuple(placements), background)


def simple_scene(sprites: Sprites, sprite: int) -> Scene:
    """Make a scene of one emoji in the middle on white, whose prompt is the emoji's name."""
    white = (1.0, 1.0, 1.0)
    return Scene(sprites.names[sprite], (Placement(sprite, 0.0, 0.0, 0.92),), (white, white))


def paint(
    scenes: Sequence[Scene],
    sprites: Sprites,
    size: int,
    frames: int = 1,
    starts: Sequence[int] | None = None,
) -> Painted:
    """Paint scenes at size pixels, on the device of the sprites' frames.

    frames: consecutive frames, around the end of an animation to its beginning. starts: the first frame of each scene.
    """
    device = sprites.frames.device
    edges = torch.tensor(np.array([scene.background for scene in scenes]), dtype=torch.float32, device=device)
    ramp = torch.linspace(0, 1, size, device=device)
    blend = ((ramp[:, None] + ramp[None, :]) / 2)[None, None, None]
    first, last = (edges[:, end, :, None, None, None] for end in (0, 1))
    canvas = (first + (last - first) * blend).expand(-1, -1, frames, -1, -1).contiguous()
    masks = torch.zeros(len(scenes), SLOTS, frames, size, size, device=device)
    begin = np.zeros(len(scenes), int) if starts is None else np.asarray(starts)
    for slot in range(max(len(scene.placements) for scene in scenes)):
        rows = [row for row, scene in enumerate(scenes) if slot < len(scene.placements)]
        placements = [scenes[row].placements[slot] for row in rows]
        colour, alpha = _stamp(placements, sprites, size, frames, begin[rows])
        index = torch.tensor(rows, device=device)
        canvas[index] = canvas[index] * (1 - alpha) + colour
        masks[index] = masks[index] * (1 - alpha)
        masks[index, slot] = alpha[:, 0]
    return Painted(canvas * 2 - 1, masks)


def _stamp(
    placements: Sequence[Placement], sprites: Sprites, size: int, frames: int, begin: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paint one emoji a scene: premultiplied colour (n, 3, frames, size, size), alpha (n, 1, frames, size, size)."""
    device = sprites.frames.device
    which = np.array([p.sprite for p in placements])
    frame = (begin[:, None] + np.arange(frames)) % sprites.counts[which, None]
    rgba = sprites.frames[torch.from_numpy(sprites.first[which, None] + frame).to(device)].flatten(0, 1)
    rgba = rgba.permute(0, 3, 1, 2).float() / 255
    rgba = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
    # Halve until no more than two source pixels fall on one: bilinear sampling then skips none.
    while rgba.shape[-1] >= max(2, 2 * size * max(p.side for p in placements)):
        rgba = F.avg_pool2d(rgba, 2)
    sides, x, y = (torch.tensor([getattr(p, name) for p in placements], device=device) for name in ("side", "x", "y"))
    sides, x, y = (value.float().repeat_interleave(frames) for value in (sides, x, y))
    theta = torch.zeros(len(sides), 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / sides
    theta[:, 0, 2], theta[:, 1, 2] = -x / sides, -y / sides
    grid = F.affine_grid(theta, [len(sides), 4, size, size], align_corners=False)
    drawn = F.grid_sample(rgba, grid, align_corners=False).unflatten(0, (-1, frames)).transpose(1, 2)
    return drawn[:, :3], drawn[:, 3:]


def _background(rng: np.random.Generator) -> tuple[str, tuple[tuple[float, float, float], tuple[float, float, float]]]:
    names = list(COLOURS)
    kind = rng.random()
    if kind < 0.5:
        return "", ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    one, other = (names[index] for index in rng.permutation(len(names))[:2])
    if kind < 0.8:
        colour = _shade(rng, one)
        return f", {one} background", (colour, colour)
    return f", {one} to {other} gradient", (_shade(rng, one), _shade(rng, other))


def _shade(rng: np.random.Generator, name: str) -> tuple[float, float, float]:
    r, g, b = np.clip(np.array(COLOURS[name]) / 255 + rng.normal(0, 0.02, 3), 0, 1).tolist()
    return r, g, b


def _size(rng: np.random.Generator) -> tuple[str, float]:
    """Draw a word for the size, or none, and a side to match."""
    draw = rng.random()
    if draw < 0.8:
        return "", float(rng.uniform(0.8, 0.94))
    return ("small ", float(rng.uniform(0.45, 0.6))) if draw < 0.9 else ("large ", float(rng.uniform(0.97, 1.1)))
