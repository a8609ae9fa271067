"""Certification: samples are made by a plan, compared with dense ones, and the budget moved until the quality is kept.

Predicted errors rank plans; how far they are off, and how an error at one noise level counts against one at another, is
measured: once for each range of noise levels alone, then for each plan tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from planner.errors import BadOption, UnreachableQuality
from planner.plan.evidence import Evidence
from planner.plan.plan import Plan
from planner.plan.quality import Certificate, Quality
from planner.plan.target import Target
from planner.search.allocation import Allocation, Allocator
from planner.search.budget import Budget

SamplePlan = Callable[[Plan], torch.Tensor]
"""Samples of all cases, made by a plan: (cases, 3, [frames,] height, width) in [0, 1]."""

Progress = Callable[[str], None]

TRIES = 8
"""Plans that are measured at most, after those that measure the gains."""

FIRST_STEP = 0.1
"""By how much of a nat the allowed error is moved at least, at first."""

CLOSE = {"psnr": 0.3, "ssim": 0.003}
"""How near above what is asked the bound of a plan has to be for the search to end."""


def measured_gains(
    evidence: Evidence, target: Target, dense: torch.Tensor, sample: SamplePlan, progress: Progress
) -> list[float]:
    """Return what an error of the model's output in each range of noise levels adds to that of samples.

    Both are mean squared errors. One sampling run for each range, there at a density halfway to the sparsest, and dense
    elsewhere.
    """
    allocator, gains = Allocator(evidence, target), list[float]()
    if len(allocator.levels) == 1:
        return [1.0]
    for number in range(len(allocator.levels)):
        saved = math.fsum(choice.pairs[0] - min(choice.pairs) for choice in allocator.choices if choice.range == number)
        halfway = allocator.within(Budget(density=1 - saved / 2), only=number)
        error = float((sample(halfway.plan) - dense).square().mean())
        gains.append(error / halfway.error if halfway.error > 0 else 1.0)
        progress(f"range {number + 1} of {len(allocator.levels)}: an error of 1 there makes one of {gains[-1]:.3g}")
    return gains


def certify(
    evidence: Evidence,
    target: Target,
    quality: Quality,
    cases: Sequence[str],
    dense: torch.Tensor,
    sample: SamplePlan,
    toolchain: str,
    date: str,
    by_head: bool = True,
    progress: Progress = lambda _: None,
) -> Plan:
    """Return the fastest plan found whose measured quality is kept, with its certificate.

    dense: samples of the cases by the model itself. Raises UnreachableQuality where even a plan that leaves everything
    dense does not keep it, BadOption for a quality that is not measured on samples.
    """
    if quality.metric == "recall":
        raise BadOption("quality", quality, "psnr or ssim: a recall is kept without sampling, by planner.allocate")
    if len(cases) != len(dense) or len(cases) < 3:
        raise BadOption("cases", len(cases), f"one for each of the {len(dense)} samples, at least three")
    gains = measured_gains(evidence, target, dense, sample, progress)
    allocator = Allocator(evidence, target, gains, by_head=by_head)
    judge = _Judge(quality, tuple(cases), dense, sample, toolchain, date, progress)
    plan = _fastest(allocator, judge) or _all_dense(allocator, judge)
    return plan.verify()


@dataclass(frozen=True)
class _Judge:
    """Measures the quality of plans on samples, of each plan once."""

    quality: Quality
    cases: tuple[str, ...]
    dense: torch.Tensor
    sample: SamplePlan
    toolchain: str
    date: str
    progress: Progress
    certificates: dict[tuple[str, ...], Certificate] = field(default_factory=dict[tuple[str, ...], Certificate])

    def certificate(self, allocation: Allocation) -> Certificate:
        """Return what is measured of a plan, whether or not the quality is kept."""
        patterns = tuple(decision.pattern for decision in allocation.plan.decisions)
        if patterns not in self.certificates:
            quality, values = self.quality, self.quality.of(self.sample(allocation.plan), self.dense)
            certificate = Certificate(
                quality.metric, quality.asked, self.cases, tuple(values), self.toolchain, self.date
            )
            self.certificates[patterns] = certificate
            self.progress(f"{len(self.certificates)}: density {allocation.density:.3f}, {certificate}")
        return self.certificates[patterns]


def _fastest(allocator: Allocator, judge: _Judge) -> Plan | None:
    """Return the fastest plan that was found to keep the quality, with its certificate; None where none did.

    The predicted error that is allowed is moved towards the greatest that keeps it.
    """
    quality = judge.quality
    sparsest = allocator.within(Budget(error=math.inf))
    error = _first_error(quality, sparsest)
    bracket = _Bracket(quality)
    best_seconds, best = math.inf, None
    for number in range(TRIES):
        allocation = allocator.within(Budget(error=error))
        certificate = judge.certificate(allocation)
        margin = certificate.bound - quality.asked
        if margin >= 0 and allocation.seconds < best_seconds:
            best_seconds, best = allocation.seconds, replace(allocation.plan, certificate=certificate)
        if margin >= 0 and (margin <= CLOSE[quality.metric] or allocation.seconds == sparsest.seconds):
            break
        bracket.add(error, margin)
        log_error = bracket.next_log_error(number)
        if log_error is None:
            break
        error = math.exp(log_error)
    return best


def _all_dense(allocator: Allocator, judge: _Judge) -> Plan:
    """Return the plan that leaves everything dense, with its certificate; raises UnreachableQuality."""
    allocation = allocator.within(Budget(density=1.0))
    certificate = judge.certificate(allocation)
    if certificate.bound < judge.quality.asked:
        raise UnreachableQuality(str(judge.quality), f"{certificate.bound:.4g}, with every site dense")
    return replace(allocation.plan, certificate=certificate)


def _first_error(quality: Quality, sparsest: Allocation) -> float:
    """Return where to begin: the error of the asked PSNR, less what cases differ by; else a tenth of the greatest."""
    return 10 ** (-(quality.asked + 3) / 10) if quality.metric == "psnr" else sparsest.error / 10


@dataclass
class _Bracket:
    """The greatest error known to keep a quality and the least known not to.

    Both as (logarithm of the error, how far the bound was above what is asked).
    """

    quality: Quality
    passing: tuple[float, float] | None = None
    failing: tuple[float, float] | None = None

    def add(self, error: float, margin: float) -> None:
        """Note how far above what is asked the bound is with an error."""
        point = math.log(max(error, 1e-30)), margin
        if margin >= 0:
            self.passing = point if self.passing is None else max(self.passing, point, key=_log_error)
        else:
            self.failing = point if self.failing is None else min(self.failing, point, key=_log_error)

    def next_log_error(self, number: int) -> float | None:
        """Return the logarithm of the error to allow next, None where the two are close; number: of the try."""
        if self.passing is not None and self.failing is not None:
            return _between(self.passing, self.failing)
        if self.passing is not None:
            return self.passing[0] + self._step(self.passing[1], number)
        assert self.failing is not None
        return self.failing[0] - self._step(self.failing[1], number)

    def _step(self, margin: float, number: int) -> float:
        """Return how far to go outwards, each time at least twice as far as before.

        A case that goes another way early on stays far off until errors are much smaller.
        """
        if self.quality.metric == "ssim":
            return math.log(4)
        step = FIRST_STEP * 2**number
        if math.isfinite(margin):  # a decibel of error is a decibel of PSNR
            step = max(step, abs(margin - CLOSE["psnr"] / 2) * math.log(10) / 10)
        return step


def _log_error(point: tuple[float, float]) -> float:
    return point[0]


def _between(passing: tuple[float, float], failing: tuple[float, float]) -> float | None:
    """Return where the margin is expected to be zero between two points, None where they are close."""
    (low, above), (high, below) = passing, failing
    if high - low < 0.02:
        return None
    share = min(max(above / (above - below), 0.15), 0.85)
    return low + share * (high - low)
