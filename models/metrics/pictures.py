"""How planned samples compare with dense ones of the same seeds: numbers for pictures and clips."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from planner.models.metrics.scorer import Scorer
from planner.plan.quality import psnr, ssim


@dataclass(frozen=True)
class Quality:
    """Planned against dense, means over samples.

    psnr: dB. ssim: Wang et al. 2004. distance: LPIPS-like, in the scorer's features. match, dense_match: cosine of
    picture and prompt. frechet, dense_frechet: to real pictures, in the scorer's pooled features. flicker: mean change
    from frame to frame over that of dense; 1 for still pictures.
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
    """Compare samples in [0, 1], (n, 3, h, w) or (n, 3, frames, h, w), sample by sample, frame by frame.

    real: pictures (m, 3, h, w) in [0, 1]. prompts: pooled embeddings (n, 384). Raises MissingDependency without
    torchmetrics.
    """
    frames = planned.shape[2] if planned.dim() == 5 else 1
    ours, theirs = as_pictures(planned), as_pictures(dense)
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


def as_pictures(samples: torch.Tensor) -> torch.Tensor:
    """Frames of clips (n, 3, frames, h, w) as pictures (n * frames, 3, h, w); pictures as they are."""
    return samples.transpose(1, 2).flatten(0, 1) if samples.dim() == 5 else samples


def flicker(clips: torch.Tensor) -> float:
    """Mean absolute change from each frame to the next of clips (n, 3, frames, h, w)."""
    return float((clips[:, :, 1:] - clips[:, :, :-1]).abs().mean())


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """Fréchet distance of two sets of features, (n, d) and (m, d), as of two Gaussians (Heusel et al. 2017).

    Biased upwards where a set holds fewer samples than features; compare only distances of sets of equal sizes.
    Not a number for a set of one.
    """
    a, b = a.double(), b.double()
    spread_a, spread_b = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(spread_a @ spread_b).real.clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + spread_a.trace() + spread_b.trace() - 2 * root)


def side_by_side(dense: torch.Tensor, planned: torch.Tensor) -> torch.Tensor:
    """Dense and planned samples beside each other, and then four times their difference, from white."""
    return torch.cat([dense, planned, 1 - ((planned - dense).abs() * 4).clamp(max=1)], dim=-1)
