"""Sensitivities: the change of the model's output with the error of a site.

A recorded call runs again with one site at a time under a candidate and all others dense, from the site's block on
where the call can be replayed there (block_replay.py).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from typing import Any

import torch

from planner.capture.ops import SDPA
from planner.patterns.spelling import parse_pattern
from planner.plan.plan import Decision, Plan
from planner.runtime.attention.cpu import grouped_sdpa
from planner.runtime.eager.sdpa_mode import SdpaMode
from planner.runtime.evidence.block_replay import BlockReplay, block_of
from planner.runtime.evidence.recorded_call import RecordedCall, first_tensor


@torch.no_grad()
def measure_sensitivities(
    model: torch.nn.Module,
    plan: Plan,
    candidates: Mapping[str, tuple[str, ...]],
    call: RecordedCall,
    sites: Collection[str],
) -> dict[str, float]:
    """Measure the sensitivity of sites at a call: the mean squared change of the output over the site's error.

    plan: a dense plan of the model, whose decisions are in the order of its attention calls. candidates: spellings, by
    site. Each site follows the candidate whose error is the median over all sites with the same candidates.
    """
    medians = {spellings: _median_candidate(call, candidates, spellings) for spellings in set(candidates.values())}
    indices = {site: medians[spellings] for site, spellings in candidates.items() if site in sites}
    changes = _output_changes(model, plan, call, {site: candidates[site][index] for site, index in indices.items()})
    errors = {site: float(call.scores[site][1][index].sum()) for site, index in indices.items()}
    return {site: changes[site] / error if error > 0 else 0.0 for site, error in errors.items()}


def _median_candidate(call: RecordedCall, candidates: Mapping[str, tuple[str, ...]], spellings: tuple[str, ...]) -> int:
    """Return the index of the candidate of median error over all sites with these spellings, without pooled ones."""
    errors = [call.scores[site][1].sum(1) for site, own in candidates.items() if own == spellings]
    total = torch.stack(errors).sum(0).tolist()
    exact = [index for index, text in enumerate(spellings) if not parse_pattern(text).pooled]
    return sorted(exact, key=total.__getitem__)[len(exact) // 2]


def _output_changes(
    model: torch.nn.Module, plan: Plan, call: RecordedCall, patterns: Mapping[str, str]
) -> dict[str, float]:
    """Return the mean squared change of the output, by site, for each site alone under its pattern.

    patterns: by site, in the order of the calls.
    """
    changes = _replayed_changes(model, plan, call, patterns)
    for site, pattern in patterns.items():
        if math.isnan(changes.get(site, math.nan)):
            with _OneSiteMode(plan.decisions, site, pattern):
                changes[site] = float(_change(model._call_impl(*call.args, **call.kwargs), call.output))
    return changes


def _replayed_changes(
    model: torch.nn.Module, plan: Plan, call: RecordedCall, patterns: Mapping[str, str]
) -> dict[str, float]:
    """Return the changes of sites at whose blocks the call can be replayed; NaN where it depends on a skipped block."""
    replay = BlockReplay(model, call.args, call.kwargs, [block_of(decision.site) for decision in plan.decisions])
    changes = dict[str, torch.Tensor]()
    for site, pattern in patterns.items():
        if replay.reach(block_of(site)):
            remaining = [decision for decision in plan.decisions if block_of(decision.site) not in replay.skipped]
            with _OneSiteMode(remaining, site, pattern):
                changes[site] = _change(replay.run(), call.output)
    return {site: float(change) for site, change in changes.items()}


class _OneSiteMode(SdpaMode):
    """A mode in which one site follows a pattern and all others are dense."""

    def __init__(self, decisions: Sequence[Decision], site: str, pattern: str) -> None:
        super().__init__(cycle(decisions))
        self.site, self.pattern = site, pattern

    def attend(self, decision: Decision, arguments: dict[str, Any]) -> torch.Tensor:
        """Attend under the pattern at the one site, by torch's kernels to save compilation; return (B, H, N, E)."""
        if decision.site != self.site:
            return SDPA(**arguments)
        arguments.pop("dropout_p", None)
        return grouped_sdpa(**arguments, layout=decision.layout, pattern=self.pattern)


def _change(output: Any, before: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference of a model's output from a tensor of its shape, () float32."""
    return (first_tensor(output).float() - before.float()).square().mean()
