"""Recording: evidence of a model's attention, taken while it samples.

The model runs dense and unchanged. At some of its calls the candidates of every site are scored on queries drawn from
it; afterwards a few of these calls are run again, with one site at a time under a candidate, to see what that changes.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import date
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree

from planner._version import __version__
from planner.capture.call import Call
from planner.capture.hooks import uncompiled
from planner.capture.trace import Capture, capture_module
from planner.errors import BadEvidence, NothingRecorded
from planner.patterns.base import Pattern, parse_pattern
from planner.patterns.layout import TokenLayout
from planner.plan.evidence import Evidence, SiteEvidence
from planner.plan.noise_level import NoiseLevel
from planner.plan.plan import Decision, Plan
from planner.runtime.attention.cpu import grouped_sdpa
from planner.runtime.eager.sdpa_mode import SdpaMode
from planner.runtime.evidence.block_replay import Resumed, block_of, copied
from planner.runtime.evidence.scores import make_candidates, score

Sample = Callable[[torch.nn.Module], Any]
"""Runs a sampler with a given model in the place of the original."""


class DensePlan(Protocol):
    """A plan of one captured call that leaves every site dense, its noise level named; and the sites to be scored."""

    def __call__(self, capture: Capture, call: Call, model: str) -> tuple[Plan, frozenset[str]]:
        """Raises what planning raises."""
        ...


@dataclass
class _Call:
    """A call that left evidence: its place in the run, its arguments and output, and the scores of its sites."""

    number: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor
    scores: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    sensitivities: dict[str, float] = field(default_factory=dict)


def record_evidence(
    model: torch.nn.Module,
    sample: Sample,
    dense_plan: DensePlan,
    catalogue: Callable[[TokenLayout], Sequence[Pattern]],
    calls: int,
    stride: int,
    queries: int,
    path: Path | None,
) -> Evidence:
    """Record while ``sample(model)`` runs; arguments, shapes and errors as in planner.record.

    stride: every so many calls leave evidence at first.
    """
    known = Evidence.load(path) if path is not None and path.exists() else None
    recorder = _Recorder(model, dense_plan, catalogue, calls, stride, queries, known, path)
    twin = uncompiled(model)
    twin._compiled_call_impl = recorder.run
    sample(twin)
    if recorder.plan is None or not recorder.recorded:
        raise NothingRecorded(type(model).__name__, "the sampler did not call the model that it was given")
    if not recorder.candidates:
        raise NothingRecorded(type(model).__name__, "no attention site of it can take a pattern")
    return recorder.finish()


class _Recorder:
    """Stands in for a model's call; evidence is taken at every so many calls, fewer of them as the run gets long."""

    def __init__(
        self,
        model: torch.nn.Module,
        dense_plan: DensePlan,
        catalogue: Callable[[TokenLayout], Sequence[Pattern]],
        calls: int,
        stride: int,
        queries: int,
        known: Evidence | None,
        path: Path | None,
    ) -> None:
        self.model = weakref.ref(model)
        self.dense_plan, self.catalogue = dense_plan, catalogue
        self.calls, self.stride, self.queries = calls, stride, queries
        self.known, self.path = known, path
        self.plan: Plan | None = None
        self.candidates = dict[str, tuple[str, ...]]()
        self.steps = list[float]()
        self.recorded = list[_Call]()

    @torch.no_grad()
    def run(self, *args: Any, **kwargs: Any) -> Any:
        model = self.model()
        assert model is not None
        call = Call.of(model, args, kwargs)
        if self.plan is None:
            self._begin(model, args, kwargs, call)
        assert self.plan is not None
        if call.signature() != self.plan.inputs:
            raise BadEvidence(
                type(model).__name__, f"a call has inputs {call.signature()}, the first {self.plan.inputs}"
            )
        number = len(self.steps)
        level = NoiseLevel.parse(str(self.plan.noise))
        self.steps.append(float(level.of(call.tensor(level.argument))))
        if number % self.stride:
            return model._call_impl(*args, **kwargs)
        known = self._known(number)
        scores = {name: found[:3] for name, found in known.items()}
        with _Scoring(self.plan, self.candidates, self.queries, scores) if not known else nullcontext():
            result = model._call_impl(*args, **kwargs)
        scores = pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, scores)
        self.recorded.append(_Call(number, copied(args), copied(kwargs), _first(result).clone(), scores))
        if len(self.recorded) > 2 * self.calls:
            self.recorded, self.stride = self.recorded[::2], 2 * self.stride
        if self.path is not None and not known:
            self.evidence().save(self.path)
        return result

    def _begin(self, model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], call: Call) -> None:
        self.plan, scored = self.dense_plan(capture_module(model, args, kwargs), call, type(model).__name__)
        for decision in self.plan.decisions:
            layout = decision.own_grid if decision.site in scored else None
            patterns = () if layout is None else tuple(map(str, self.catalogue(layout)))
            if patterns:
                self.candidates[decision.site] = patterns
        if self.known is not None and (
            self.known.plan != self.plan
            or {name: site.candidates for name, site in self.known.sites.items()} != self.candidates
        ):
            theirs = f"a {self.known.plan.model} with inputs {self.known.plan.inputs}, or of other candidates"
            raise BadEvidence(f"a {self.plan.model} with inputs {self.plan.inputs}", f"it was recorded of {theirs}")

    def _known(self, number: int) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Recall, error, power and sensitivity of all sites at a call, from a recording that was broken off."""
        if self.known is None or number not in self.known.recorded:
            return {}
        at = self.known.recorded.index(number)
        return {
            name: (site.recall[at], site.error[at], site.power[at], site.sensitivity[at])
            for name, site in self.known.sites.items()
        }

    def finish(self) -> Evidence:
        """All evidence, after the calls that tell sensitivities."""
        sites = max(1, len(self.candidates))
        probed = max(1, min(len(self.recorded), PROBES, int(PROBE_RUNS * len(self.steps) / sites)))
        for at in sorted({round((k + 0.5) * len(self.recorded) / probed - 0.5) for k in range(probed)}):
            self._probe(self.recorded[at])
            if self.path is not None:
                self.evidence().save(self.path)
        return self.evidence()

    @torch.no_grad()
    def _probe(self, call: _Call) -> None:
        """The sensitivities of all sites at a call."""
        known = {name: float(found[3]) for name, found in self._known(call.number).items() if not found[3].isnan()}
        medians = {candidates: self._median(call, candidates) for candidates in set(self.candidates.values())}
        places = {name: medians[candidates] for name, candidates in self.candidates.items() if name not in known}
        changes = self._changes(call, {name: self.candidates[name][place] for name, place in places.items()})
        errors = {name: float(call.scores[name][1][place].sum()) for name, place in places.items()}
        found = {name: changes[name] / error if error > 0 else 0.0 for name, error in errors.items()}
        call.sensitivities.update(known | found)

    def _changes(self, call: _Call, patterns: Mapping[str, str]) -> dict[str, float]:
        """Mean squared changes of a call's output when one of some sites, given as they attend, follows a pattern."""
        model = self.model()
        assert model is not None
        assert self.plan is not None
        blocks = [block_of(decision.site) for decision in self.plan.decisions]
        resumed, under_way = Resumed(model, call.args, call.kwargs, blocks), dict[str, torch.Tensor]()
        for name, pattern in patterns.items():
            if resumed.reach(block_of(name)):
                left = [one for one in self.plan.decisions if block_of(one.site) not in resumed.passed]
                with _OneSite(left, name, pattern):
                    under_way[name] = _change(resumed.run(), call.output)
        changes = {name: float(change) for name, change in under_way.items()}
        for name, pattern in patterns.items():
            if math.isnan(changes.get(name, math.nan)):
                with _OneSite(self.plan.decisions, name, pattern):
                    changes[name] = float(_change(model._call_impl(*call.args, **call.kwargs), call.output))
        return changes

    def evidence(self) -> Evidence:
        """What was found so far; raises BadEvidence for values that are no numbers."""
        assert self.plan is not None
        sites = dict[str, SiteEvidence]()
        for name, candidates in self.candidates.items():
            tables = zip(*(call.scores[name] for call in self.recorded), strict=True)
            recall, error, power = (torch.stack(of_calls) for of_calls in tables)
            sensitivity = torch.tensor([call.sensitivities.get(name, math.nan) for call in self.recorded])
            sites[name] = SiteEvidence(candidates, recall, error, power, sensitivity)
        made_by = {
            "planner": __version__,
            "torch": torch.__version__,
            "device": self.recorded[0].output.device.type,
            "date": date.today().isoformat(),
        }
        numbers = tuple(call.number for call in self.recorded)
        return Evidence(self.plan, tuple(self.steps), numbers, sites, made_by).verify()

    def _median(self, call: _Call, candidates: tuple[str, ...]) -> int:
        """The place of the candidate of median error over all sites that have these, those with means passed over."""
        alike = [call.scores[site][1].sum(1) for site, theirs in self.candidates.items() if theirs == candidates]
        total = torch.stack(alike).sum(0).tolist()
        near = [place for place, text in enumerate(candidates) if not parse_pattern(text).pooled]
        return sorted(near, key=total.__getitem__)[len(near) // 2]


PROBES = 3
"""Calls at which sensitivities are measured, at most: each takes half a call of the model for every site, or a whole
one where the call cannot be taken up at the site's block."""

PROBE_RUNS = 1.5
"""Sampling runs that measuring sensitivities may take by whole calls, as long as one call is probed."""


class _Scoring(SdpaMode):
    """While entered, attention is scored; its results do not change."""

    def __init__(
        self,
        plan: Plan,
        candidates: Mapping[str, tuple[str, ...]],
        queries: int,
        scores: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    ) -> None:
        super().__init__(cycle(plan.decisions))
        self.candidates, self.queries, self.scores = candidates, queries, scores

    def attend(self, decision: Decision, given: dict[str, Any]) -> torch.Tensor:
        """Dense attention, as asked, with its scores put down."""
        if decision.site in self.candidates:
            query, key, value = given["query"], given["key"], given["value"]
            candidates = make_candidates(decision.layout, self.candidates[decision.site], self.queries, query.device)
            self.scores[decision.site] = score(
                query, key, value, candidates, given.get("attn_mask"), given.get("scale")
            )
        return F.scaled_dot_product_attention(**given)


class _OneSite(SdpaMode):
    """While entered, one site follows a pattern and all others are dense."""

    def __init__(self, decisions: Sequence[Decision], site: str, pattern: str) -> None:
        super().__init__(cycle(decisions))
        self.site, self.pattern = site, pattern

    def attend(self, decision: Decision, given: dict[str, Any]) -> torch.Tensor:
        """Attention as asked, or under the pattern by torch's own; to compile a kernel would take longer."""
        if decision.site != self.site:
            return F.scaled_dot_product_attention(**given)
        given.pop("dropout_p", None)
        return grouped_sdpa(**given, layout=decision.layout, pattern=self.pattern)


def _change(result: Any, before: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of a model's output from what it was before."""
    return (_first(result).float() - before.float()).square().mean()


def _first(result: Any) -> torch.Tensor:
    """The first tensor of a model's output."""
    return next(
        leaf for leaf in pytree.tree_leaves(getattr(result, "to_tuple", lambda: result)()) if torch.is_tensor(leaf)
    )
