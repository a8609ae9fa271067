"""The compiled model: a twin that shares weights, hooks and configuration with the original, and runs a plan."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.eval_frame import OptimizedModule
from torch._dynamo.exc import BackendCompilerFailed, Unsupported

from planner.capture.call import Call, holds_caches, with_copied_caches
from planner.capture.hooks import is_hooked, uncompiled
from planner.capture.trace import Capture, attention_calls, capture_graph, capture_module, why_not_lower
from planner.errors import (
    BadOption,
    CannotCapture,
    NotCompiled,
    NotPicklable,
    OutOfMemory,
    PlanDiverged,
    PlannerError,
)
from planner.plan.options import Options
from planner.plan.plan import Decision, Plan
from planner.provenance.propagate import Memory
from planner.runtime.attention.dispatch import fallbacks
from planner.runtime.attention.operator import WithoutBackward
from planner.runtime.eager.context_parallel import Parallelism
from planner.runtime.eager.follow_plan import FollowPlan, module_paths
from planner.runtime.graph.hoist_permutations import Hoisting, hoist
from planner.runtime.graph.regional_compile import compile_regions
from planner.runtime.graph.rewrite import rewrite
from planner.runtime.kernels.select import has_kernels, load_seconds
from planner.runtime.measure import Stopwatch
from planner.runtime.model.measurement import Measurement, compare_runs
from planner.stages import PlannedGraph, plan_capture

MAX_VARIANTS = 256
"""Sets of inputs for which one model is kept compiled; more raise an error, and are never run dense in silence."""

Model = TypeVar("Model", bound=torch.nn.Module)


class PlanGraph(Protocol):
    """The planner as the compiled model calls it: from a captured graph of a call to its plan."""

    def __call__(self, capture: Capture, call: Call, memory: Memory, model: str) -> PlannedGraph:
        """Plan the attention of one graph; raises what planning raises."""
        ...


@dataclass(frozen=True)
class Report:
    """The calls of a compiled model so far: its plans, one for each set of inputs, and its dense attention.

    calls: of the model, for each plan. unplanned: for each plan, the attention outside it, by site, with the reason.
    fallbacks: (reason, count) of planned attention on a GPU without an emitted kernel, in this process. startup: for
    each plan, the seconds of each stage of its first call. hoistings: for each plan, the permutations of tokens in each
    of its graphs; none where kernels read the model's own order. intercepted: for each plan, whether the model runs
    without a captured graph, its attention calls intercepted. measurements: those of planner.measure, in order.
    disabled: whether planner.disable has turned planning off, so that calls run dense.
    """

    plans: tuple[Plan, ...]
    calls: tuple[int, ...]
    unplanned: tuple[Mapping[str, str], ...]
    fallbacks: tuple[tuple[str, int], ...] = ()
    startup: tuple[Mapping[str, float], ...] = ()
    hoistings: tuple[tuple[Hoisting, ...], ...] = ()
    intercepted: tuple[bool, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    disabled: bool = False

    def __str__(self) -> str:
        lines = ["disabled: calls run dense until planner.enable(model)"] * self.disabled
        rows = zip(self.plans, self.calls, self.unplanned, self.startup, self.hoistings, self.intercepted, strict=True)
        for plan, calls, unplanned, startup, hoistings, intercepted in rows:
            sparse = sum(decision.is_sparse for decision in plan.decisions)
            lines.append(f"{plan.inputs}: {calls} calls, {sparse} of {len(plan.decisions)} attention sites sparse")
            stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in startup.items())
            lines.append(f"  first call {sum(startup.values()):.1f} s: {stages}")
            lines += ["  intercepted: graph breaks or hooks keep the model from being captured whole"] * intercepted
            lines += [f"  {hoisting}" for hoisting in hoistings]
            dense = [decision for decision in plan.decisions if not decision.is_sparse]
            lines += [f"  dense {decision.site}: {decision.reason}" for decision in dense]
            if not plan.decisions and not unplanned:
                lines.append("  no call of scaled_dot_product_attention: there is nothing to plan")
            lines += [f"  dense {site}: {reason}" for site, reason in unplanned.items()]
        lines += [f"without an emitted kernel, {count} times: {reason}" for reason, count in self.fallbacks]
        lines += [f"measured: {measurement}" for measurement in self.measurements]
        return "\n".join(lines) or "not called yet"


def compile_model(model: Model, plan_graph: PlanGraph, backend: str, fullgraph: bool) -> Model:
    """Return a twin of a model whose calls are planned; raises BadOption for a backend unknown to torch.compile."""
    if backend != "eager" and backend not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(["eager", *torch.compiler.list_backends()])
        raise BadOption("backend", backend, f"a name that torch.compile knows: {known}")
    twin: Any = uncompiled(model._orig_mod if isinstance(model, OptimizedModule) else model)
    session = _Session(weakref.ref(twin), plan_graph, backend, fullgraph)
    vars(twin).update(
        _compiled_call_impl=session.run, __deepcopy__=session.deepcopy, __reduce_ex__=session.refuse_pickle
    )
    return twin


def report(model: torch.nn.Module) -> Report:
    """Report the plans that a compiled model runs; raises NotCompiled."""
    session = _session_of(model)
    every = [(variant, variant.plan) for variants in session.variants.values() for variant in variants]
    return Report(
        tuple(plan for _, plan in every if plan is not None),
        tuple(variant.calls for variant, plan in every if plan is not None),
        tuple(variant.unplanned for variant, plan in every if plan is not None),
        tuple(fallbacks.items()),
        tuple(variant.startup.seconds for variant, plan in every if plan is not None),
        tuple(tuple(variant.hoistings) for variant, plan in every if plan is not None),
        tuple(variant.interception is not None for variant, plan in every if plan is not None),
        tuple(session.measurements),
        session.is_off,
    )


def disable(model: torch.nn.Module) -> Disabled:
    """Let a compiled model run dense, as the original does, until it is enabled; raises NotCompiled.

    Used in a with statement, the model is enabled again at its end.
    """
    _session_of(model).is_off = True
    return Disabled(model)


def enable(model: torch.nn.Module) -> None:
    """Let a compiled model that was disabled run its plans again; raises NotCompiled."""
    _session_of(model).is_off = False


class Disabled:
    """A disabled model, which is enabled when a with statement ends."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model

    def __enter__(self) -> None:
        """Do nothing: the model is disabled already."""

    def __exit__(self, *error: object) -> None:
        enable(self._model)


def measure(model: torch.nn.Module, *args: Any, rounds: int = 3, **kwargs: Any) -> Measurement:
    """Measure a compiled model on a call's arguments, dense against planned in turn, and keep it in the report.

    Dense runs by the same backend. Both run once before; rounds: how often each is timed. Raises NotCompiled,
    BadOption, and what a call raises.
    """
    if rounds < 1:
        raise BadOption("rounds", rounds, "a number of at least 1")
    session = _session_of(model)
    plan_nothing = partial(plan_capture, Options(pattern="dense"), None)
    dense = compile_model(uncompiled(model), plan_nothing, session.backend, session.fullgraph)
    with torch.no_grad():
        measurement = compare_runs(lambda: dense(*args, **kwargs), lambda: model(*args, **kwargs), rounds)
    session.measurements.append(measurement)
    return measurement


def _session_of(model: torch.nn.Module) -> _Session:
    """Return the session of a compiled model; raises NotCompiled."""
    session = getattr(getattr(model, "_compiled_call_impl", None), "__self__", None)
    if not isinstance(session, _Session):
        raise NotCompiled(model)
    return session


class _Session:
    """The variants of one model, by input shapes, devices and whether modules are hooked.

    A key has several variants where different grids have the same number of tokens; guards tell those variants apart.
    """

    def __init__(
        self, twin: Callable[[], torch.nn.Module | None], plan_graph: PlanGraph, backend: str, fullgraph: bool
    ) -> None:
        self.twin = twin
        self.plan_graph = plan_graph
        self.backend = backend
        self.fullgraph = fullgraph
        self.variants = dict[tuple[str, ...], list[_Variant]]()
        self.modules: tuple[weakref.ref[torch.nn.Module], ...] = ()
        self.measurements = list[Measurement]()
        self.is_off = False

    def run(self, *args: Any, **kwargs: Any) -> Any:
        model = self.twin()
        assert model is not None
        if self.is_off:
            return model._call_impl(*args, **kwargs)
        call = Call.of(model, args, kwargs)
        hooks = self._is_hooked(model)
        variants = self.variants.setdefault((call.signature(), *call.devices(), "hooked" * hooks), [])
        variant = _find_valid(variants, call)
        if variant is None:
            with _planning:
                variant = _find_valid(variants, call)
                if variant is None:
                    return self._begin(variants, model, call, args, kwargs, hooks)
        variant.calls += 1
        return variant.run(call, args, kwargs)

    def _is_hooked(self, model: torch.nn.Module) -> bool:
        """Tell whether any module is hooked; modules are listed anew when one of them has been deleted."""
        modules = [reference() for reference in self.modules]
        if not modules or None in modules:
            modules = list(model.modules())
            self.modules = tuple(map(weakref.ref, modules))
        return any(is_hooked(module) for module in modules if module is not None)

    def deepcopy(self, memo: dict[int, Any]) -> torch.nn.Module:
        """Copy the model, and compile the copy with the same planner, backend and fullgraph."""
        model = self.twin()
        assert model is not None
        return compile_model(copy.deepcopy(uncompiled(model), memo), self.plan_graph, self.backend, self.fullgraph)

    def refuse_pickle(self, _protocol: Any) -> Any:
        """Raise NotPicklable in place of pickling the model."""
        raise NotPicklable(type(self.twin()).__name__)

    def _begin(
        self,
        variants: list[_Variant],
        model: torch.nn.Module,
        call: Call,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        hooks: bool,
    ) -> Any:
        variant = _Variant(model, self.plan_graph, self.backend, self.fullgraph)
        result = variant.begin(model, call, args, kwargs, hooks)
        variant.calls += 1
        variants.append(variant)
        return result


def _find_valid(variants: Sequence[_Variant], call: Call) -> _Variant | None:
    """Return the variant whose guards hold for a call."""
    return next((variant for variant in variants if variant.holds_for(call)), None)


_planning = threading.RLock()
"""The lock that is held while a model is planned: tracing keeps state that all threads share."""


class _Variant:
    """A model compiled for one set of input shapes, valid for calls whose guarded arguments have the same values.

    guard_digests: digests of the guarded arguments, by name. guard_tensors: by name, the tensor last compared and its
    version at that time; the same tensor at the same version needs no comparison.
    """

    def __init__(self, model: torch.nn.Module, plan_graph: PlanGraph, backend: str, fullgraph: bool) -> None:
        self.name = type(model).__name__
        self.plan_graph = plan_graph
        self.backend = backend
        self.fullgraph = fullgraph
        self.startup = Stopwatch()
        self.hoistings = list[Hoisting]()
        self.plan: Plan | None = None
        self.calls = 0
        self.is_first = True
        self.graphs = 0
        self.unplanned = dict[str, str]()
        self.guard_digests = dict[str, bytes]()
        self.guard_tensors = dict[str, tuple[weakref.ref[torch.Tensor], int]]()
        self.local = threading.local()
        self.interception: _Interception | None = None
        self.compiled = torch.compile(model._call_impl, backend=self._compile_graph, dynamic=False, fullgraph=fullgraph)

    def holds_for(self, call: Call) -> bool:
        """Tell whether all guards hold; a tensor that was compared before is not read, so no device is synchronised."""
        tensors = dict(call.tensors)
        return all(
            self._is_unchanged(name, tensors[name]) or self._is_equal(name, tensors[name], call)
            for name in self.guard_digests
        )

    def run(self, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if self.interception is not None:
            return self._run_intercepted(call, args, kwargs)
        self.local.current, loaded = _Current(call), load_seconds()
        is_first, self.is_first = self.is_first, False
        if is_first:
            self.startup.start()
        try:
            with torch._dynamo.config.patch(
                recompile_limit=MAX_VARIANTS,
                accumulated_recompile_limit=16 * MAX_VARIANTS,
                fail_on_recompile_limit_hit=True,
            ):
                result = self.compiled(*args, **kwargs)
        except BackendCompilerFailed as failure:
            self._explain(failure.inner_exception, call)
            raise
        except (Unsupported, RuntimeError) as error:
            self._explain(error, call)
            raise
        finally:
            self.local.current = None
        if is_first:
            self.startup.lap("run")
            self.startup.stop()
            self.startup.move("run", "kernels", load_seconds() - loaded)
        return result

    def begin(
        self, model: torch.nn.Module, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any], hooks: bool
    ) -> Any:
        """Run the first call: plan while Dynamo captures; intercept where modules are hooked or the graph breaks."""
        if hooks:
            if self.fullgraph:
                raise CannotCapture(self.name, "fullgraph=True, and its modules are hooked")
            self._intercept(model, self._plan_whole(model, call, args, kwargs), call)
            return self.run(call, args, kwargs)
        own_args, own_kwargs = with_copied_caches((args, kwargs))
        result = self.run(call, own_args, own_kwargs)
        if self.graphs != 1:
            self._plan_beyond_breaks(model, call, args, kwargs)
        if self.interception is not None or holds_caches((args, kwargs)):
            result = self.run(call, args, kwargs)
        return result

    def _plan_beyond_breaks(
        self, model: torch.nn.Module, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Choose between interception and Dynamo's graphs after a graph break, whichever plans more attention sparse.

        Where both plan as much, attention is intercepted if no backend lowers the graphs. Where the graphs are kept,
        attention outside of them is listed as unplanned.
        """
        planned = self._plan_whole(model, call, args, kwargs)
        gain = _sparse(planned.plan) - _sparse(self.plan)
        if gain > 0 or (gain == 0 and self.backend == "eager"):
            self._intercept(model, planned, call)
            return
        captured = {decision.site for decision in self.plan.decisions} if self.plan else set[str]()
        outside = {decision.site for decision in planned.plan.decisions} - captured - self.unplanned.keys()
        self.unplanned |= dict.fromkeys(sorted(outside), "not in a captured graph, because of a graph break")

    def _intercept(self, model: torch.nn.Module, planned: PlannedGraph, call: Call) -> None:
        parallelism = Parallelism.of(model)
        if parallelism is not None:
            planned = _dense_where_unfollowed(planned, parallelism)
        self._adopt(planned, call)
        self.interception = _Interception(model, planned, module_paths(model), parallelism)

    def _plan_whole(
        self, model: torch.nn.Module, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> PlannedGraph:
        try:
            capture = capture_module(model, args, kwargs)
        except CannotCapture:
            capture = capture_module(model, args, kwargs, runs=True)
        return self.plan_graph(capture, call, Memory(), self.name)

    def _run_intercepted(self, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the model with its attention intercepted; a call that diverges from the plan is planned anew, once."""
        assert self.interception is not None
        try:
            return self.interception.run(call, args, kwargs)
        except PlanDiverged:
            self._intercept(
                self.interception.model, self._plan_whole(self.interception.model, call, args, kwargs), call
            )
            return self.interception.run(call, args, kwargs)

    def _explain(self, error: BaseException, call: Call) -> None:
        """Raise the planner's own error for an error of torch in a call, where there is one; else return."""
        if isinstance(error, PlannerError):
            raise error from None
        if isinstance(error, Unsupported):
            raise CannotCapture(self.name, f"fullgraph=True, and {str(error).splitlines()[0]}") from error
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            largest = self._largest()
            sizes = (largest.site, largest.layout, largest.heads, largest.head_dim) if largest is not None else None
            raise OutOfMemory(self.name, call.signature(), str(error).splitlines()[0], sizes) from error

    def _largest(self) -> Decision | None:
        """Return the decision with the most dense FLOPs planned so far, None without one."""
        return max(self.plan.decisions, key=lambda decision: decision.dense_flops, default=None) if self.plan else None

    def _compile_graph(self, graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Plan and rewrite a graph, and compile it by the model's backend: the backend that torch.compile calls."""
        current: _Current = self.local.current
        self.startup.lap("capture")
        reason = why_not_lower(graph)
        if reason is not None:
            self.unplanned |= dict.fromkeys(attention_calls(graph), reason)
            self._add_plan(self.plan_graph(Capture.empty(), current.call, current.memory, self.name))
            return graph.forward if self.backend == "eager" else lookup_backend(self.backend)(graph, list(inputs))
        capture = capture_graph(graph, inputs)
        self.startup.lap("lower")
        planned = self.plan_graph(capture, current.call, current.memory, self.name)
        rewrite(capture, planned, current.call)
        if not has_kernels(capture.device):
            self.hoistings += filter(None, [hoist(capture, planned.plan)])
        self._add_plan(planned)
        self.startup.lap("plan")
        run = capture.graph.forward
        if self.backend != "eager":
            run = _refusing_gradients(compile_regions(capture.graph, lookup_backend(self.backend)).run)
            self.startup.lap(self.backend)
        return self._remembering_shadows(run, planned)

    def _add_plan(self, planned: PlannedGraph) -> None:
        """Add the plan of one graph to that of the call."""
        current: _Current = self.local.current
        self.graphs += 1
        current.plan = planned.plan if current.plan is None else _joined(current.plan, planned.plan)
        self._adopt(replace(planned, plan=current.plan), current.call)

    def _adopt(self, planned: PlannedGraph, call: Call) -> None:
        self.plan = planned.plan
        for name in planned.guards:
            self.guard_digests[name] = call.digest(name)
            self._remember(name, dict(call.tensors)[name])

    def _remembering_shadows(self, run: Callable[..., Any], planned: PlannedGraph) -> Callable[..., Any]:
        """Store the provenance of a graph's outputs at each run: after a break they are the next graph's inputs."""

        def run_and_remember(*args: Any) -> Any:
            results = run(*args)
            current: _Current | None = getattr(self.local, "current", None)
            if current is not None:
                for result, shadow in zip(results, planned.outputs, strict=False):
                    if shadow is not None and isinstance(result, torch.Tensor):
                        current.memory.shadows[result] = shadow
            self.startup.lap("run")
            return results

        return run_and_remember

    def _remember(self, name: str, tensor: torch.Tensor) -> None:
        # A tensor of inference_mode has no version, so its values are compared at every call.
        if not tensor.is_inference():
            self.guard_tensors[name] = (weakref.ref(tensor), tensor._version)

    def _is_unchanged(self, name: str, tensor: torch.Tensor) -> bool:
        if name not in self.guard_tensors or tensor.is_inference():
            return False
        compared, version = self.guard_tensors[name]
        return compared() is tensor and version == tensor._version

    def _is_equal(self, name: str, tensor: torch.Tensor, call: Call) -> bool:
        if call.digest(name) != self.guard_digests[name]:
            return False
        self._remember(name, tensor)
        return True


def _sparse(plan: Plan | None) -> int:
    """Count the sparse sites of a plan."""
    return 0 if plan is None else sum(decision.is_sparse for decision in plan.decisions)


def _dense_where_unfollowed(planned: PlannedGraph, parallelism: Parallelism) -> PlannedGraph:
    """Make those decisions dense, with the reason, that cannot be followed on several devices."""
    decisions = list[Decision]()
    for decision in planned.plan.decisions:
        reason = parallelism.why_not(decision) if decision.is_sparse else None
        decisions.append(decision if reason is None else decision.as_dense(reason))
    return replace(planned, plan=replace(planned.plan, decisions=tuple(decisions)))


def _refusing_gradients(run: Callable[..., Any]) -> Callable[..., Any]:
    """Make backward through a lowered graph raise NoGradient: a graph lowered for inference has no gradients."""

    def refuse(*args: Any) -> Any:
        results = run(*args)
        if not torch.is_grad_enabled():
            return results
        anchor = torch.empty(0, requires_grad=True)
        return [
            WithoutBackward.apply(x, anchor) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
            for x in results
        ]

    return refuse


@dataclass
class _Interception:
    """A model that runs without a captured graph, and the plan that its attention calls follow."""

    model: torch.nn.Module
    planned: PlannedGraph
    paths: dict[int, str]
    parallelism: Parallelism | None

    def run(self, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the model with its attention as planned; raises PlanDiverged where a call is not in the plan."""
        with FollowPlan(self.planned, self.paths, call, self.parallelism):
            return self.model._call_impl(*args, **kwargs)


@dataclass
class _Current:
    """The current call, whose graphs Dynamo passes to the backend one by one."""

    call: Call
    memory: Memory = field(default_factory=Memory)
    plan: Plan | None = None


def _joined(first: Plan, second: Plan) -> Plan:
    """Join the plans of two graphs of one call; sites that share a name are numbered."""
    names = {decision.site for decision in first.decisions}
    decisions = list(first.decisions)
    for decision in second.decisions:
        name, number = decision.site, 1
        while name in names:
            name, number = f"{decision.site}#{number}", number + 1
        names.add(name)
        decisions.append(replace(decision, site=name))
    return replace(
        first,
        decisions=tuple(decisions),
        noise=first.noise or second.noise,
        other_flops=first.other_flops + second.other_flops,
        other_seconds=first.other_seconds + second.other_seconds,
    )
