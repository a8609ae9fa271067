"""The way through, one line a stage: ``make_plan`` decides, ``compile`` decides and executes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, Unpack, cast

import torch

from planner._version import __version__
from planner.capture.call import Call
from planner.capture.trace import capture_module
from planner.errors import BadOption, NotAModule, PlanMismatch
from planner.patterns.catalogue import catalogue
from planner.plan.evidence import Evidence
from planner.plan.options import Options, PlanOptions
from planner.plan.plan import Plan
from planner.plan.quality import Quality
from planner.plan.target import Target
from planner.search.allocation import Allocator
from planner.search.budget import Budget, Budgets
from planner.search.certify import certify
from planner.search.transfer import carry_over
from planner.stages import follow_plan, plan_capture, plan_dense

Model = TypeVar("Model", bound=torch.nn.Module)
Plannable = TypeVar("Plannable")
"""A model, or a pipeline of diffusers."""


def make_plan(
    model: torch.nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: str = "auto",
    **options: Unpack[PlanOptions],
) -> Plan:
    """Plan the attention of a model for one set of inputs, without running it.

    The model and its inputs may live on the meta device: no weights and no GPU are needed. Masks and position ids
    must be real tensors, since their values say where tokens sit.

    target: a name such as ``h100``, or ``auto`` for the model's own device. Options are those of planner.Options.
    Raises CannotCapture, and for options that fit no site GroupTooLarge, PatternCoversAll, UnreachableBudget,
    LayoutMismatch.
    """
    decided = Options(**options).verify()
    place = resolve_target(target, require_module(model))
    capture = capture_module(model, args, kwargs or {})
    call = Call.of(model, args, kwargs or {})
    return plan_capture(decided, place, capture, call, model=type(model).__name__).plan


def compile(
    model: Plannable,
    *,
    plan: Plan | None = None,
    target: str = "auto",
    backend: str = "eager",
    fullgraph: bool = False,
    **options: Unpack[PlanOptions],
) -> Plannable:
    """Return a model that runs with planned attention and is called exactly as the original.

    It shares weights, configuration and hooks with the original, which stays dense. It is planned at the first call,
    and again, once, for every new set of input shapes; ``planner.report`` shows the plans. In a pipeline of diffusers
    every transformer is replaced by its planned twin, and the pipeline itself is returned.

    plan: run this plan, for its input shapes only, instead of planning. target: as in make_plan; ``auto`` is the device
    that attention runs on when it is planned. backend: what runs the rest of the graph: ``eager`` leaves it as it is,
    ``inductor`` or another name that torch.compile knows lowers it, equal blocks once. fullgraph: a graph break is an
    error. Options are those of planner.Options. Inputs too small for the group or the pattern that is named run dense,
    and the report says so. Raises NotAModule, BadOption, UnknownName; at a call, what make_plan raises besides,
    PlanMismatch and OutOfMemory.
    """
    from planner.runtime.model.compiled import compile_model

    decided = Options(**options).verify()
    place = None if target == "auto" else Target.named(target)
    for name, denoiser in denoisers_of(model).items():
        planned = compile(denoiser, plan=plan, target=target, backend=backend, fullgraph=fullgraph, **options)
        setattr(model, name, planned)
    if denoisers_of(model):
        return model
    new_plan = partial(plan_capture, decided, place, at_any_size=True)
    plan_graph = new_plan if plan is None else partial(follow_plan, plan.verify())
    return compile_model(require_module(cast(Any, model)), plan_graph, backend, fullgraph)


def record(
    model: torch.nn.Module,
    sample: Callable[[torch.nn.Module], Any],
    *,
    path: str | os.PathLike[str] | None = None,
    calls: int = 6,
    sampler_calls: int | None = None,
    queries: int = 256,
    layout: str | None = None,
    noise: str | None = None,
) -> Evidence:
    """Record evidence of a model's attention while it samples, for choosing a plan that keeps a quality.

    sample: runs the sampler with a given model in the place of this one, ``lambda model: pipeline(model, prompts)``;
    its calls must all have the same input shapes. path: where the evidence is kept as it grows; a recording that was
    broken off goes on from there. calls: at least so many of the sampler's calls are looked at, where it makes as many.
    sampler_calls: how many it makes, if that is known; else up to three times as many are looked at as are kept.
    queries: drawn of each site's grid. layout, noise: as in planner.Options.
    Raises CannotCapture, NoNoiseLevel, LayoutMismatch, NothingRecorded and BadEvidence.
    """
    from planner.runtime.evidence.record import record_evidence

    if min(calls, queries, 1 if sampler_calls is None else sampler_calls) < 1:
        asked = (calls, sampler_calls, queries)
        raise BadOption("calls, sampler_calls, queries", asked, "numbers of at least 1")
    options = Options(pattern="dense", layout=layout, noise=noise).verify()
    kept = None if path is None else Path(path)
    stride = max(1, ((sampler_calls or 1) - 1) // max(1, calls - 1))
    plan = partial(plan_dense, options)
    return record_evidence(require_module(model), sample, plan, catalogue, calls, stride, queries, kept)


def allocate(evidence: Evidence, *, target: str = "h100", by_head: bool = True, **budget: Unpack[Budgets]) -> Plan:
    """Return the best plan within a budget, from evidence alone: neither the model nor a device is needed.

    by_head: whether heads of one site may differ. budget: one of ``recall``,
    ``error``, ``density`` and ``speedup``, as in planner.search.budget.Budget.
    Raises UnknownName, BadOption, BadEvidence, and UnreachableQuality with the best that can be reached.
    """
    return Allocator(evidence, Target.named(target), by_head=by_head).within(Budget(**budget)).plan


def transfer(
    plan: Plan, model: torch.nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> Plan:
    """Carry a plan over to other inputs of its model, of another size say; reasons say what was extrapolated.

    What the plan keeps there was not measured: its certificate is left behind. Raises what make_plan raises, and
    PlanMismatch for another model.
    """
    if type(require_module(model)).__name__ != plan.model:
        raise PlanMismatch(f"a {plan.model}", f"a {type(model).__name__}")
    options = replace(plan.options, pattern="dense", group=None, density=None, speedup=None)
    dense = make_plan(model, args, kwargs, target=plan.target, **asdict(options))
    return carry_over(plan, dense)


def tune(
    model: torch.nn.Module,
    sample: Callable[[torch.nn.Module], torch.Tensor],
    quality: Quality,
    *,
    cases: Sequence[str],
    evidence: Evidence | None = None,
    target: str = "auto",
    backend: str = "eager",
    by_head: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Find the fastest plan that keeps a quality, measured on samples; its certificate says what was measured.

    sample: samples of all cases with a given model, (cases, 3, [frames,] height, width) in [0, 1], the same for the
    same model. cases: what they are, a prompt and its seed each. evidence: of this model and these input shapes;
    recorded if it is not given. target, backend: as in planner.compile. by_head: as in allocate. progress: is told how
    it goes on. Raises what record and compile raise, and UnreachableQuality with the best that was reached.
    """
    quality.verify()
    place = resolve_target(target, require_module(model))
    if quality.recall is not None:
        known = record(model, sample) if evidence is None else evidence
        return allocate(known, target=place.name, by_head=by_head, recall=quality.recall)
    dense, calls = _counting_calls(model, sample)
    if evidence is None:
        evidence = record(model, sample, sampler_calls=calls)
    toolchain = f"planner {__version__}, torch {torch.__version__}, {place.name}"

    def sample_plan(plan: Plan) -> torch.Tensor:
        torch._dynamo.reset()
        return sample(compile(model, plan=plan, backend=backend))

    today = date.today().isoformat()
    return certify(evidence, place, quality, cases, dense, sample_plan, toolchain, today, by_head, progress)


def _counting_calls(
    model: torch.nn.Module, sample: Callable[[torch.nn.Module], torch.Tensor]
) -> tuple[torch.Tensor, int]:
    """Sample the dense model; return the samples and the number of calls of the model that they took, at least 1."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    counting = model.register_forward_pre_hook(count)
    try:
        return sample(model), max(1, calls)
    finally:
        counting.remove()


def denoisers_of(pipeline: object) -> dict[str, torch.nn.Module]:
    """Return the modules of a pipeline of diffusers that denoise, by their names: both transformers of Wan 2.2, say."""
    components: Mapping[str, object] = {} if isinstance(pipeline, torch.nn.Module) else _components(pipeline)
    named = (name for name in components if re.fullmatch(r"(transformer|unet)(_\d+)?", name))
    modules = ((name, components[name]) for name in named)
    return {name: module for name, module in modules if isinstance(module, torch.nn.Module)}


def _components(pipeline: object) -> Mapping[str, object]:
    components = getattr(pipeline, "components", None)
    return components if isinstance(components, Mapping) else {}


def require_module(model: Model) -> Model:
    """Return the model itself; raises NotAModule where it is not an nn.Module."""
    if not isinstance(model, torch.nn.Module):
        raise NotAModule(model)
    return model


def resolve_target(name: str, model: torch.nn.Module) -> Target:
    """Return the target of a name, or for "auto" that of the device a model is on; raises UnknownName."""
    if name != "auto":
        return Target.named(name)
    parameter = next(model.parameters(), None)
    return Target.of_device(torch.device("cpu") if parameter is None else parameter.device)
