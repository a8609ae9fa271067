"""Recorded calls: scores and sensitivities at some calls of a sampling run, and the evidence collected from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import torch
import torch.utils._pytree as pytree

from planner._version import __version__
from planner.plan.evidence import Evidence, SiteEvidence
from planner.plan.plan import Plan

Scores = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""(recall, error, power) of one site at one call: (candidates, heads) twice and (heads,), float32."""


@dataclass
class RecordedCall:
    """A recorded call of the model.

    number: its position in the sampling run. args, kwargs: copies of its arguments. output: a copy of the first tensor
    of its result. scores, sensitivities: by site.
    """

    number: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor
    scores: Mapping[str, Scores]
    sensitivities: dict[str, float] = field(default_factory=dict)


def first_tensor(output: Any) -> torch.Tensor:
    """Return the first tensor of a model's output."""
    leaves = pytree.tree_leaves(getattr(output, "to_tuple", lambda: output)())
    return next(leaf for leaf in leaves if torch.is_tensor(leaf))


def collect_evidence(
    plan: Plan, levels: Sequence[float], calls: Sequence[RecordedCall], candidates: Mapping[str, tuple[str, ...]]
) -> Evidence:
    """Collect the evidence of recorded calls, site by site; raises BadEvidence for scores that are not finite.

    levels: noise levels of all calls of the run so far. candidates: spellings, by site.
    """
    sites = dict[str, SiteEvidence]()
    for site, spellings in candidates.items():
        tables = zip(*(call.scores[site] for call in calls), strict=True)
        recall, error, power = (torch.stack(of_calls) for of_calls in tables)
        sensitivity = torch.tensor([call.sensitivities.get(site, math.nan) for call in calls])
        sites[site] = SiteEvidence(spellings, recall, error, power, sensitivity)
    toolchain = {
        "planner": __version__,
        "torch": torch.__version__,
        "device": calls[0].output.device.type,
        "date": date.today().isoformat(),
    }
    return Evidence(plan, tuple(levels), tuple(call.number for call in calls), sites, toolchain).verify()
