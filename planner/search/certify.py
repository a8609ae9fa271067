"""Certification: samples are made by a plan, compared with dense ones, and the budget moved until the quality is kept.

Predicted errors rank plans; how far they are off, and how an error at one noise level counts against one at another, is
measured: once for each range of noise levels alone, then for each plan tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from planner.errors import BadOption, UnreachableQuality
from planner.plan.evidence import Evidence
from planner.plan.plan import Plan
from planner.plan.quality import Certificate, Quality
from planner.plan.target import Target
from planner.search.allocation import Allocation, Allocator, Budget

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
    """What an error of the model's output in each range of noise levels adds to the mean squared error of samples.

    One sampling run for each range, there at a density halfway to the sparsest, and dense elsewhere.
    """
    plain, gains = Allocator(evidence, target), list[float]()
    if len(plain.levels) == 1:
        return [1.0]
    for number in range(len(plain.levels)):
        saved = math.fsum(choice.pairs[0] - min(choice.pairs) for choice in plain.choices if choice.range == number)
        found = plain.within(Budget(density=1 - saved / 2), only=number)
        error = float((sample(found.plan) - dense).square().mean())
        gains.append(error / found.error if found.error > 0 else 1.0)
        progress(f"range {number + 1} of {len(plain.levels)}: an error of 1 there makes one of {gains[-1]:.3g}")
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
    """The fastest plan found whose measured quality is kept, with its certificate.

    dense: samples of the cases by the model itself. Raises UnreachableQuality where even a plan that leaves everything
    dense does not keep it, BadOption for a quality that is not measured on samples.
    """
    if quality.metric == "recall":
        raise BadOption("quality", quality, "psnr or ssim: a recall is kept without sampling, by planner.allocate")
    if len(cases) != len(dense) or len(cases) < 3:
        raise BadOption("cases", len(cases), f"one for each of the {len(dense)} samples, at least three")
    gains = measured_gains(evidence, target, dense, sample, progress)
    allocator = Allocator(evidence, target, gains, by_head=by_head)
    tried = dict[tuple[str, ...], Certificate]()

    def measure(found: Allocation) -> Certificate:
        patterns = tuple(decision.pattern for decision in found.plan.decisions)
        if patterns not in tried:
            values = quality.of(sample(found.plan), dense)
            tried[patterns] = Certificate(quality.metric, quality.asked, tuple(cases), tuple(values), toolchain, date)
            progress(f"{len(tried)}: density {found.density:.3f}, {tried[patterns]}")
        return tried[patterns]

    best: tuple[float, Plan] | None = None
    error, fastest = _first_error(quality, allocator), allocator.within(Budget(error=math.inf)).seconds
    passing, failing = None, None
    for number in range(TRIES):
        found = allocator.within(Budget(error=error))
        certificate = measure(found)
        point = math.log(max(error, 1e-30)), certificate.bound - quality.asked
        if certificate.bound >= quality.asked:
            passing = point if passing is None or point[0] > passing[0] else passing
            if best is None or found.seconds < best[0]:
                best = found.seconds, replace(found.plan, certificate=certificate)
            if point[1] <= CLOSE[quality.metric] or found.seconds == fastest:
                break
        else:
            failing = point if failing is None or point[0] < failing[0] else failing
        step = _next(quality, passing, failing, number)
        if step is None:
            break
        error = math.exp(step)
    if best is None:
        leaving = allocator.within(Budget(density=1.0))
        certificate = measure(leaving)
        if certificate.bound < quality.asked:
            raise UnreachableQuality(str(quality), f"{certificate.bound:.4g}, with every site dense")
        best = leaving.seconds, replace(leaving.plan, certificate=certificate)
    return best[1].verify()


def _first_error(quality: Quality, allocator: Allocator) -> float:
    """Where to begin: the mean squared error of the asked PSNR, less what spread between cases takes; or a tenth."""
    if quality.metric == "psnr":
        return 10 ** (-(quality.asked + 3) / 10)
    return allocator.within(Budget(error=math.inf)).error / 10


def _next(
    quality: Quality, passing: tuple[float, float] | None, failing: tuple[float, float] | None, number: int
) -> float | None:
    """The logarithm of the next error to allow: between the two, or outwards where there is one; None at the end.

    Both as (logarithm of the error, how far the bound was above what is asked). Outwards each step is at least twice
    the one before: a case that goes another way early on stays far off until errors are much smaller.
    """
    if passing is None or failing is None:
        known = passing or failing
        assert known is not None
        least = math.log(4) if quality.metric == "ssim" else FIRST_STEP * 2**number
        if quality.metric == "psnr" and math.isfinite(known[1]):  # a decibel of error is a decibel of PSNR
            least = max(least, abs(known[1] - CLOSE["psnr"] / 2) * math.log(10) / 10)
        return known[0] + (least if passing is not None else -least)
    (low, above), (high, below) = passing, failing
    if high - low < 0.02:
        return None
    share = min(max(above / (above - below), 0.15), 0.85)
    return low + share * (high - low)
