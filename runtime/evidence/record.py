"""Recording: evidence of a model's attention, recorded while the model samples.

The model runs dense, and its results do not change. At some of its calls the candidates of every site are scored on
queries drawn from the site (scoring_mode.py). After sampling, sensitivities are measured at a few of these calls
(sensitivity.py).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from planner.capture.call import Call
from planner.capture.hooks import uncompiled
from planner.capture.trace import Capture, capture_module
from planner.errors import BadEvidence, NothingRecorded
from planner.patterns.base import Pattern
from planner.patterns.layout import TokenLayout
from planner.plan.evidence import Evidence
from planner.plan.noise_level import NoiseLevel
from planner.plan.plan import Plan
from planner.runtime.evidence.block_replay import clone_tensors
from planner.runtime.evidence.recorded_call import RecordedCall, Scores, collect_evidence, first_tensor
from planner.runtime.evidence.scoring_mode import ScoringMode
from planner.runtime.evidence.sensitivity import measure_sensitivities

PROBES = 3
"""The most calls at which sensitivities are measured. Each takes the time of half a call of the model for every site,
or of a whole call where the call cannot be replayed at the site's block."""

PROBE_RUNS = 1.5
"""The most sampling runs that measuring sensitivities may take if its calls run whole; one call is always measured."""

Sample = Callable[[torch.nn.Module], Any]
"""A function that runs a sampler with its argument in place of the original model."""


class DensePlan(Protocol):
    """The planner as recording calls it: from a captured call to a plan that leaves every site dense."""

    def __call__(self, capture: Capture, call: Call, model: str) -> tuple[Plan, frozenset[str]]:
        """Plan a call and name the sites to be scored; the plan names the noise level. Raises what planning raises."""
        ...


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
    """Record evidence while ``sample`` runs on a twin of the model; arguments and errors as in planner.record.

    catalogue: from a layout to its candidates. stride: one of so many calls is recorded at first; the stride doubles
    when more than twice ``calls`` have been recorded.
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
    """A replacement for a model's call that records some of the calls.

    known: an interrupted recording of the same run, whose scores are not computed again. path: the file to which
    evidence is saved after each recorded call.
    """

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
        self._model_reference = weakref.ref(model)
        self.dense_plan, self.catalogue = dense_plan, catalogue
        self.calls, self.stride, self.queries = calls, stride, queries
        self.known, self.path = known, path
        self.plan: Plan | None = None
        self.candidates = dict[str, tuple[str, ...]]()
        self.levels = list[float]()
        self.recorded = list[RecordedCall]()

    @torch.no_grad()
    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model, and record the call if its number is a multiple of the stride."""
        model = self._model()
        call = Call.of(model, args, kwargs)
        if self.plan is None:
            self._begin(model, args, kwargs, call)
        number = self._count(call)
        if number % self.stride:
            return model._call_impl(*args, **kwargs)
        known = self._known_scores(number)
        if known is None:
            result, scores = self._score(model, args, kwargs)
        else:
            result, scores = model._call_impl(*args, **kwargs), known
        output = first_tensor(result).clone()
        self.recorded.append(RecordedCall(number, clone_tensors(args), clone_tensors(kwargs), output, scores))
        if len(self.recorded) > 2 * self.calls:
            self.recorded, self.stride = self.recorded[::2], 2 * self.stride
        if known is None:
            self._save()
        return result

    def finish(self) -> Evidence:
        """Measure sensitivities at some of the recorded calls, and return all evidence; raises BadEvidence."""
        assert self.plan is not None
        for call in self._calls_to_probe():
            known = self._known_sensitivities(call.number)
            sites = self.candidates.keys() - known.keys()
            measured = measure_sensitivities(self._model(), self.plan, self.candidates, call, sites)
            call.sensitivities |= known | measured
            self._save()
        return self._evidence()

    def _begin(self, model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], call: Call) -> None:
        """Plan the first call, and list candidates by site; raises BadEvidence if known evidence differs."""
        self.plan, scored = self.dense_plan(capture_module(model, args, kwargs), call, type(model).__name__)
        for decision in self.plan.decisions:
            layout = decision.own_grid if decision.site in scored else None
            spellings = () if layout is None else tuple(map(str, self.catalogue(layout)))
            if spellings:
                self.candidates[decision.site] = spellings
        if self.known is None:
            return
        known_candidates = {name: site.candidates for name, site in self.known.sites.items()}
        if self.known.plan != self.plan or known_candidates != self.candidates:
            recorded_of = f"a {self.known.plan.model} with inputs {self.known.plan.inputs}, or of other candidates"
            raise BadEvidence(
                f"a {self.plan.model} with inputs {self.plan.inputs}", f"it was recorded of {recorded_of}"
            )

    def _count(self, call: Call) -> int:
        """Store a call's noise level and return its number; raises BadEvidence where inputs differ from the first."""
        assert self.plan is not None
        if call.signature() != self.plan.inputs:
            raise BadEvidence(self.plan.model, f"a call has inputs {call.signature()}, the first {self.plan.inputs}")
        level = NoiseLevel.parse(str(self.plan.noise))
        self.levels.append(float(level.of(call.tensor(level.argument))))
        return len(self.levels) - 1

    def _score(
        self, model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Scores]]:
        """Call the model, and score the candidates of its sites."""
        assert self.plan is not None
        with ScoringMode(self.plan.decisions, self.candidates, self.queries) as mode:
            result = model._call_impl(*args, **kwargs)
        return result, mode.scores_on_cpu()

    def _known_scores(self, number: int) -> dict[str, Scores] | None:
        """Return the scores of a call from the interrupted recording, None if it has none."""
        if self.known is None or number not in self.known.recorded:
            return None
        row = self.known.recorded.index(number)
        return {name: (site.recall[row], site.error[row], site.power[row]) for name, site in self.known.sites.items()}

    def _known_sensitivities(self, number: int) -> dict[str, float]:
        """Return the sensitivities at a call from the interrupted recording, of those sites that it has measured."""
        if self.known is None or number not in self.known.recorded:
            return {}
        row = self.known.recorded.index(number)
        measured = {name: float(site.sensitivity[row]) for name, site in self.known.sites.items()}
        return {name: value for name, value in measured.items() if not math.isnan(value)}

    def _calls_to_probe(self) -> list[RecordedCall]:
        """Choose the calls at which sensitivities are measured, spread evenly over the recorded calls."""
        affordable = int(PROBE_RUNS * len(self.levels) / max(1, len(self.candidates)))
        count = max(1, min(len(self.recorded), PROBES, affordable))
        indices = {round((k + 0.5) * len(self.recorded) / count - 0.5) for k in range(count)}
        return [self.recorded[index] for index in sorted(indices)]

    def _evidence(self) -> Evidence:
        assert self.plan is not None
        return collect_evidence(self.plan, self.levels, self.recorded, self.candidates)

    def _save(self) -> None:
        if self.path is not None:
            self._evidence().save(self.path)

    def _model(self) -> torch.nn.Module:
        model = self._model_reference()
        assert model is not None
        return model
