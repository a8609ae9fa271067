"""A small network that scores images: whether one shows its prompt, and how different two of them look."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from planner.models.emoji.text import WIDTH

WIDTHS = (32, 64, 128, 192)
JOINT = 256


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class Scorer(nn.Module):
    """An embedding of images and prompts in one space, as in CLIP (Radford et al. 2021), for emoji.

    The image tower is a residual network over images of 64 pixels or more, the text tower two layers on the pooled
    embedding of a prompt; 2.8 M parameters together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTHS[0], 3, stride=2, padding=1)
        self.stages = nn.ModuleList(nn.Sequential(_Block(width), _Block(width)) for width in WIDTHS)
        self.down = nn.ModuleList(nn.Conv2d(narrow, wide, 3, stride=2, padding=1) for narrow, wide in pairwise(WIDTHS))
        self.picture_head = nn.Linear(WIDTHS[-1], JOINT)
        self.text_head = nn.Sequential(nn.Linear(WIDTH, 2 * JOINT), nn.GELU(), nn.Linear(2 * JOINT, JOINT))
        self.log_scale = nn.Parameter(torch.tensor(2.66))

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Compute the feature maps after each stage, fine to coarse, of images (batch, 3, h, w) in [0, 1]."""
        x, features = self.stem(images * 2 - 1), list[torch.Tensor]()
        for index, stage in enumerate(self.stages):
            x = stage(x if index == 0 else self.down[index - 1](x))
            features.append(x)
        return features

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        """Compute feature vectors (batch, 192) of images (batch, 3, h, w) in [0, 1], for Fréchet distances."""
        return self.maps(images)[-1].mean((2, 3))

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Embed images (batch, 3, h, w) in [0, 1] as unit vectors (batch, 256)."""
        return F.normalize(self.picture_head(self.pooled(images)), dim=-1)

    def embed_prompts(self, pooled: torch.Tensor) -> torch.Tensor:
        """Embed prompts, by their pooled embeddings (batch, 384), as unit vectors (batch, 256)."""
        return F.normalize(self.text_head(pooled), dim=-1)

    def match(self, images: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """Compute the cosine between each image and its prompt, (batch,).

        images: (batch, 3, h, w) in [0, 1]. pooled: embeddings of prompts (batch, 384).
        """
        return (self.embed_images(images) * self.embed_prompts(pooled)).sum(-1)

    def distance(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Compute the LPIPS-like distance (batch,) of two batches of images (batch, 3, h, w) in [0, 1].

        It is the squared difference of channel-normalised features, averaged over positions and summed over stages
        (Zhang et al. 2018, equation 1, with all weights 1).
        """
        return torch.stack(
            [
                (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean((1, 2))
                for x, y in zip(self.maps(a), self.maps(b), strict=True)
            ]
        ).sum(0)


def retrieval(scores: torch.Tensor, answers: Sequence[str], top: int) -> float:
    """Return the share of images whose own prompt, by its answer, has one of the ``top`` highest scores.

    scores: (images, prompts). answers: the answer of each prompt, and of the image in the same row.
    """
    best = scores.topk(top, dim=1).indices.tolist()
    return sum(answers[row] in {answers[c] for c in columns} for row, columns in enumerate(best)) / len(best)
