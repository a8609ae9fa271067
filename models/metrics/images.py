"""Metrics of planned samples, images or clips, against dense samples of the same seeds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from planner.models.metrics.scorer import Scorer
from planner.plan.quality import psnr, ssim


@dataclass(frozen=True)
class Quality:
    """Metrics of planned against dense samples, each the mean over samples.

    psnr: dB. ssim: Wang et al. 2004. distance: LPIPS-like, in the scorer's features. match, dense_match: cosine between
    image and prompt. frechet, dense_frechet: distance from real images, in the scorer's pooled features. flicker: mean
    change from frame to frame over that of dense; 1 for still images.
    """

    psnr: float
    ssim: float
    distance: float
    match: float
    dense_match: float
    frechet: float
    dense_frechet: float
    flicker: float


def compare(
    planned: torch.Tensor, dense: torch.Tensor, real: torch.Tensor, prompts: torch.Tensor, scorer: Scorer
) -> Quality:
    """Compare planned with dense samples, sample by sample and frame by frame.

    planned, dense: (n, 3, h, w) or (n, 3, frames, h, w) in [0, 1]. real: images (m, 3, h, w) in [0, 1]. prompts: pooled
    embeddings (n, 384). Raises MissingDependency without torchmetrics.
    """
    frames = planned.shape[2] if planned.dim() == 5 else 1
    ours, theirs = as_images(planned), as_images(dense)
    prompts, real_features = prompts.repeat_interleave(frames, 0), scorer.pooled(real)
    return Quality(
        psnr=float(psnr(ours, theirs).mean()),
        ssim=float(ssim(ours, theirs).mean()),
        distance=float(scorer.distance(ours, theirs).mean()),
        match=float(scorer.match(ours, prompts).mean()),
        dense_match=float(scorer.match(theirs, prompts).mean()),
        frechet=frechet(scorer.pooled(ours), real_features),
        dense_frechet=frechet(scorer.pooled(theirs), real_features),
        flicker=flicker(planned) / flicker(dense) if frames > 1 else 1.0,
    )


def as_images(samples: torch.Tensor) -> torch.Tensor:
    """Return the frames of clips (n, 3, frames, h, w) as images (n * frames, 3, h, w), and images unchanged."""
    return samples.transpose(1, 2).flatten(0, 1) if samples.dim() == 5 else samples


def flicker(clips: torch.Tensor) -> float:
    """Return the mean absolute change from each frame to the next of clips (n, 3, frames, h, w)."""
    return float((clips[:, :, 1:] - clips[:, :, :-1]).abs().mean())


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """Compute the Fréchet distance of two sets of features, (n, d) and (m, d), as Gaussians (Heusel et al. 2017).

    It is biased upwards where a set holds fewer samples than features: compare only distances of sets of equal sizes.
    It is NaN for a set of one.
    """
    a, b = a.double(), b.double()
    spread_a, spread_b = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(spread_a @ spread_b).real.clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + spread_a.trace() + spread_b.trace() - 2 * root)


def side_by_side(dense: torch.Tensor, planned: torch.Tensor) -> torch.Tensor:
    """Put dense and planned samples side by side, and beside them white less four times their difference.

    dense, planned: (…, h, w) in [0, 1]. Returns (…, h, 3 * w).
    """
    return torch.cat([dense, planned, 1 - ((planned - dense).abs() * 4).clamp(max=1)], dim=-1)
