"""The way through, one line a stage: ``make_plan`` decides, ``compile`` decides and executes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, Unpack

import torch

from planner.capture import Call, capture_module
from planner.choose import Options, PlanOptions
from planner.errors import NotAModule
from planner.pipeline import follow_plan, plan_capture
from planner.plan import Plan
from planner.target import Target

Model = TypeVar("Model", bound=torch.nn.Module)


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
    model: Model,
    *,
    plan: Plan | None = None,
    target: str = "auto",
    backend: str = "eager",
    fullgraph: bool = False,
    **options: Unpack[PlanOptions],
) -> Model:
    """Return a model that runs with planned attention and is called exactly as the original.

    It shares weights, configuration and hooks with the original, which stays dense. It is planned at the first call,
    and again, once, for every new set of input shapes; ``planner.report`` shows the plans.

    plan: run this plan, for its input shapes only, instead of planning. target: as in make_plan; ``auto`` is the device
    that attention runs on when it is planned. backend: what runs the rest of the graph: ``eager`` leaves it as it is,
    ``inductor`` or another name that torch.compile knows lowers it, equal blocks once. fullgraph: a graph break is an
    error. Options are those of planner.Options. Raises NotAModule, BadOption, UnknownName; at a call, what make_plan
    raises, PlanMismatch and OutOfMemory.
    """
    from runtime.compiled import compile_model

    decided = Options(**options).verify()
    place = None if target == "auto" else Target.named(target)
    plan_graph = partial(plan_capture, decided, place) if plan is None else partial(follow_plan, plan.verify())
    return compile_model(require_module(model), plan_graph, backend, fullgraph)


def require_module(model: Model) -> Model:
    """The model itself; raises NotAModule."""
    if not isinstance(model, torch.nn.Module):
        raise NotAModule(model)
    return model


def resolve_target(name: str, model: torch.nn.Module) -> Target:
    """A target by name, or that of the device a model lives on; raises UnknownName."""
    if name != "auto":
        return Target.named(name)
    parameter = next(model.parameters(), None)
    return Target.of_device(torch.device("cpu") if parameter is None else parameter.device)
