"""Quality: what a plan has to keep, in the metrics of the field, and the certificate of what was measured.

Planned samples are compared with dense ones of the same seeds, case by case. A certificate promises for cases that were
not measured, if they are like the measured ones: its bound is a tolerance limit, which 95 % of all cases keep, with a
confidence of 90 %.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from planner.errors import BadOption, MalformedValue
from planner.extras import require
from planner.plan.serialization import Signed

SHARE, CONFIDENCE = 0.95, 0.9
METRICS = ("psnr", "ssim", "recall")


@dataclass(frozen=True)
class Quality:
    """What a plan has to keep; exactly one of three.

    psnr: dB of each sample against the dense one. ssim: structural similarity (Wang et al. 2004), up to 1. Both hold
    for 95 % of cases like those that were measured. recall: the share of the softmax mass that every head keeps, on
    average over queries.
    """

    psnr: float | None = None
    ssim: float | None = None
    recall: float | None = None

    def verify(self) -> Quality:
        """Return the quality itself; raises BadOption."""
        given = [name for name in METRICS if getattr(self, name) is not None]
        if len(given) != 1:
            raise BadOption("quality", ", ".join(given) or None, f"one of {', '.join(METRICS)}")
        if not 0 < self.asked <= (100 if self.metric == "psnr" else 1):
            raise BadOption(self.metric, self.asked, "up to 100 dB" if self.metric == "psnr" else "a share up to 1")
        return self

    @property
    def metric(self) -> str:
        """The name of what is asked for."""
        return next(name for name in METRICS if getattr(self, name) is not None)

    @property
    def asked(self) -> float:
        """Its least value."""
        return float(getattr(self, self.metric))

    def of(self, planned: torch.Tensor, dense: torch.Tensor) -> list[float]:
        """Measure the metric of each case, samples in [0, 1] (cases, 3, [frames,] height, width)."""
        return [float(value) for value in (psnr if self.metric == "psnr" else ssim)(planned, dense)]

    def __str__(self) -> str:
        return f"{self.metric} {self.asked:g}{' dB' if self.metric == 'psnr' else ''}"


@dataclass(frozen=True)
class Certificate:
    """What was measured of a plan: a metric against dense samples, a value for each case (a prompt and its seed).

    asked: the value that the plan was made for. toolchain: versions and device. date: ISO.
    """

    metric: str
    asked: float
    cases: tuple[str, ...]
    values: tuple[Signed, ...]
    toolchain: str
    date: str

    @property
    def mean(self) -> float:
        """Of the measured values."""
        return statistics.fmean(self.values)

    @property
    def bound(self) -> float:
        """What 95 % of cases like these keep, with a confidence of 90 %."""
        return tolerance_limit(self.values)

    def verify(self) -> Certificate:
        """Return the certificate itself; raises MalformedValue."""
        holds = self.metric in METRICS[:2] and len(self.cases) == len(self.values) > 1
        if not holds or not all(map(math.isfinite, (*self.values, self.asked))):
            raise MalformedValue("certificate", "it has no value for each of its cases", "Tune again.")
        return self

    def __str__(self) -> str:
        measured = f"{self.mean:.4g} on average and {min(self.values):.4g} at worst in {len(self.values)} cases"
        promise = f"95 % of cases like them keep {self.bound:.4g}"
        return f"{self.metric}: asked {self.asked:g}, measured {measured}; {promise}"


def tolerance_limit(values: Sequence[float]) -> float:
    """Bound what a share of 0.95 of a population keeps, with a confidence of 0.9, from a sample of it.

    From 45 values on it is one of the lowest of them, whatever the population (Wilks 1941). Fewer say that of a normal
    population, and of no value below the lowest: Natrella's approximation of the one-sided factor (NBS Handbook 91,
    1963; the e-Handbook of Statistical Methods, 7.2.6.3). Minus infinity for fewer than three.
    """
    if len(values) < 3:
        return -math.inf
    rank = _sure_rank(len(values))
    return sorted(values)[rank - 1] if rank else min(_normal_limit(values), *values)


def _sure_rank(count: int) -> int:
    """Return the most r for which the r-th lowest of so many values is a tolerance limit; 0 where there is none."""
    rank, above = 0, 1.0
    while True:
        ways = math.lgamma(count + 1) - math.lgamma(rank + 1) - math.lgamma(count - rank + 1)
        above -= math.exp(ways + rank * math.log(1 - SHARE) + (count - rank) * math.log(SHARE))
        if above < CONFIDENCE:
            return rank
        rank += 1


def _normal_limit(values: Sequence[float]) -> float:
    normal, count = statistics.NormalDist(), len(values)
    share, confidence = normal.inv_cdf(SHARE), normal.inv_cdf(CONFIDENCE)
    a = 1 - confidence**2 / (2 * (count - 1))
    b = share**2 - confidence**2 / count
    factor = (share + math.sqrt(share**2 - a * b)) / a
    return statistics.fmean(values) - factor * statistics.stdev(values)


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the peak signal-to-noise ratio in dB of each sample (cases,), values in [0, 1]; equal samples have 100."""
    error = (a - b).square().flatten(1).mean(1)
    return -10 * error.clamp(min=1e-10).log10()


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the structural similarity of each sample (cases,), values in [0, 1], frames averaged (Wang et al. 2004).

    Raises MissingDependency without torchmetrics.
    """
    measure = require("torchmetrics.functional.image", "measuring SSIM").structural_similarity_index_measure
    ours, theirs = (x.transpose(1, 2).flatten(0, 1) if x.dim() == 5 else x for x in (a, b))
    found = measure(ours, theirs, data_range=1.0, reduction="none")
    assert isinstance(found, torch.Tensor)
    return found.view(len(a), -1).mean(1)
