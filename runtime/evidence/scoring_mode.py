"""Scoring while a model runs: each attention call with candidates is scored, and its result does not change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
import torch.utils._pytree as pytree

from planner.capture.ops import SDPA
from planner.plan.plan import Decision
from planner.runtime.eager.sdpa_mode import SdpaMode
from planner.runtime.evidence.recorded_call import Scores
from planner.runtime.evidence.scored_candidates import make_candidates
from planner.runtime.evidence.scores import score


class ScoringMode(SdpaMode):
    """A mode that scores the candidates of each attention call; results do not change.

    decisions: those of a dense plan, in the order of the calls. candidates: spellings, by site. queries: how many of
    each grid are drawn. scores: of the sites scored so far, by site, on the sites' device.
    """

    def __init__(self, decisions: Sequence[Decision], candidates: Mapping[str, tuple[str, ...]], queries: int) -> None:
        super().__init__(cycle(decisions))
        self.candidates, self.queries = candidates, queries
        self.scores = dict[str, Scores]()

    def attend(self, decision: Decision, arguments: dict[str, Any]) -> torch.Tensor:
        """Attend without a change, return (B, H, N, E), and score the site's candidates."""
        if decision.site in self.candidates:
            query, key, value = (arguments[name] for name in ("query", "key", "value"))
            candidates = make_candidates(decision.layout, self.candidates[decision.site], self.queries, query.device)
            mask, scale = arguments.get("attn_mask"), arguments.get("scale")
            self.scores[decision.site] = score(query, key, value, candidates, mask, scale)
        return SDPA(**arguments)

    def scores_on_cpu(self) -> dict[str, Scores]:
        """Copy the scores to the host; synchronises with the device."""
        return pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, self.scores)
