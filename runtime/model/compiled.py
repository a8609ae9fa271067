"""The compiled model: a twin of the original that shares everything with it but is called through the planner."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.eval_frame import OptimizedModule
from torch._dynamo.exc import BackendCompilerFailed, Unsupported

from planner.capture.call import Call, holds_caches, with_copied_caches
from planner.capture.hooks import is_hooked, uncompiled
from planner.capture.trace import Capture, attention_calls, capture_graph, capture_module, why_not_lower
from planner.errors import BadOption, CannotCapture, NotCompiled, NotPicklable, OutOfMemory, PlannerError
from planner.plan.plan import Decision, Plan
from planner.provenance.propagate import Memory
from planner.runtime.attention.dispatch import fallbacks
from planner.runtime.attention.operator import WithoutBackward
from planner.runtime.eager.context_parallel import Parallelism
from planner.runtime.eager.follow_plan import OutOfStep, PlannedCalls, module_paths
from planner.runtime.graph.hoist_permutations import Hoisting, hoist
from planner.runtime.graph.regional_compile import compile_blocks
from planner.runtime.graph.rewrite import rewrite
from planner.runtime.kernels.select import has_kernels, load_seconds
from planner.runtime.measure import Laps
from planner.stages import PlannedGraph

MAX_VARIANTS = 256
"""Sets of inputs for which one model is kept compiled; more is an error, never a silent return to dense."""

Model = TypeVar("Model", bound=torch.nn.Module)


class PlanGraph(Protocol):
    """Decides for one captured graph of a call."""

    def __call__(self, capture: Capture, call: Call, memory: Memory, model: str) -> PlannedGraph:
        """Raises what planning raises."""
        ...


@dataclass(frozen=True)
class Report:
    """What a compiled model has done so far: one plan per set of inputs, how often each was called, what stays dense.

    unplanned: for each plan, attention that was left out of it, by site, with the reason. stepped: for each plan,
    whether the model runs as it is written and is stepped into at its attention. fallbacks: how often planned attention
    ran on a GPU without an emitted kernel in this process, by reason. startup: for each plan, the seconds of each stage
    of its first call. hoistings: for each plan, what is left of bringing tokens into group order; nothing where kernels
    read the model's own.
    """

    plans: tuple[Plan, ...]
    calls: tuple[int, ...]
    unplanned: tuple[Mapping[str, str], ...]
    fallbacks: tuple[tuple[str, int], ...] = ()
    startup: tuple[Mapping[str, float], ...] = ()
    hoistings: tuple[tuple[Hoisting, ...], ...] = ()
    stepped: tuple[bool, ...] = ()

    def __str__(self) -> str:
        lines = list[str]()
        rows = zip(self.plans, self.calls, self.unplanned, self.startup, self.hoistings, self.stepped, strict=True)
        for plan, calls, unplanned, startup, hoistings, stepped in rows:
            sparse = sum(decision.is_sparse for decision in plan.decisions)
            lines.append(f"{plan.inputs}: {calls} calls, {sparse} of {len(plan.decisions)} attention sites sparse")
            stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in startup.items())
            lines.append(f"  first call {sum(startup.values()):.1f} s: {stages}")
            lines += ["  stepped into: graph breaks or hooks keep the model from being captured whole"] * stepped
            lines += [f"  {hoisting}" for hoisting in hoistings]
            dense = [decision for decision in plan.decisions if not decision.is_sparse]
            lines += [f"  dense {decision.site}: {decision.reason}" for decision in dense]
            if not plan.decisions and not unplanned:
                lines.append("  no call of scaled_dot_product_attention: there is nothing to plan")
            lines += [f"  dense {site}: {reason}" for site, reason in unplanned.items()]
        lines += [f"without an emitted kernel, {count} times: {reason}" for reason, count in self.fallbacks]
        return "\n".join(lines) or "not called yet"


def compile_model(model: Model, plan_graph: PlanGraph, backend: str, fullgraph: bool) -> Model:
    """A twin of a model whose calls are planned; raises BadOption for a backend that torch.compile does not know."""
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
    """The plans that a compiled model runs; raises NotCompiled."""
    session = getattr(getattr(model, "_compiled_call_impl", None), "__self__", None)
    if not isinstance(session, _Session):
        raise NotCompiled(model)
    planned = [(variant, variant.plan) for variants in session.variants.values() for variant in variants]
    return Report(
        tuple(plan for _, plan in planned if plan is not None),
        tuple(variant.calls for variant, plan in planned if plan is not None),
        tuple(variant.unplanned for variant, plan in planned if plan is not None),
        tuple(fallbacks.items()),
        tuple(variant.startup.seconds for variant, plan in planned if plan is not None),
        tuple(tuple(variant.hoistings) for variant, plan in planned if plan is not None),
        tuple(variant.stepped is not None for variant, plan in planned if plan is not None),
    )


class _Session:
    """All that is compiled for one model.

    That is a variant for each set of input shapes and devices and each grid of that many tokens, for the model as it
    stands and for when its modules are hooked.
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

    def run(self, *args: Any, **kwargs: Any) -> Any:
        model = self.twin()
        assert model is not None
        call = Call.of(model, args, kwargs)
        hooks = self._is_hooked(model)
        variants = self.variants.setdefault((call.signature(), *call.devices(), "hooked" * hooks), [])
        variant = _that_holds(variants, call)
        if variant is None:
            with _planning:
                variant = _that_holds(variants, call)
                if variant is None:
                    return self._begin(variants, model, call, args, kwargs, hooks)
        variant.calls += 1
        return variant.run(call, args, kwargs)

    def _is_hooked(self, model: torch.nn.Module) -> bool:
        """Whether any module is hooked; they are listed again when one is gone."""
        modules = [reference() for reference in self.modules]
        if not modules or None in modules:
            modules = list(model.modules())
            self.modules = tuple(map(weakref.ref, modules))
        return any(is_hooked(module) for module in modules if module is not None)

    def deepcopy(self, memo: dict[int, Any]) -> torch.nn.Module:
        """A copy of the model, compiled as this one is."""
        model = self.twin()
        assert model is not None
        return compile_model(copy.deepcopy(uncompiled(model), memo), self.plan_graph, self.backend, self.fullgraph)

    def refuse_pickle(self, _protocol: Any) -> Any:
        """Raises NotPicklable."""
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


def _that_holds(variants: Sequence[_Variant], call: Call) -> _Variant | None:
    return next((variant for variant in variants if variant.holds_for(call)), None)


_planning = threading.RLock()
"""Held while a model is planned: tracing keeps what it knows in places that all threads share."""


class _Variant:
    """A model compiled for one set of input shapes, valid while the values that its plan relies on stay the same."""

    def __init__(self, model: torch.nn.Module, plan_graph: PlanGraph, backend: str, fullgraph: bool) -> None:
        self.name = type(model).__name__
        self.plan_graph = plan_graph
        self.backend = backend
        self.fullgraph = fullgraph
        self.startup = Laps()
        self.hoistings = list[Hoisting]()
        self.plan: Plan | None = None
        self.calls = 0
        self.is_first = True
        self.graphs = 0
        self.unplanned = dict[str, str]()
        self.digests = dict[str, bytes]()
        self.seen = dict[str, tuple[weakref.ref[torch.Tensor], int]]()
        self.local = threading.local()
        self.stepped: _Stepped | None = None
        self.compiled = torch.compile(model._call_impl, backend=self._compile_graph, dynamic=False, fullgraph=fullgraph)

    def holds_for(self, call: Call) -> bool:
        """Whether the plan was made for these values; a tensor seen before costs no look, and so no device sync."""
        tensors = dict(call.tensors)
        return all(
            self._is_seen(name, tensors[name]) or self._is_equal(name, tensors[name], call) for name in self.digests
        )

    def run(self, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if self.stepped is not None:
            return self._step(call, args, kwargs)
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
        """The first call: plan while Dynamo captures, or step in where the model is hooked or falls into pieces."""
        if hooks:
            if self.fullgraph:
                raise CannotCapture(self.name, "fullgraph=True, and its modules are hooked")
            self._step_into(model, self._plan_whole(model, call, args, kwargs), call)
            return self.run(call, args, kwargs)
        own_args, own_kwargs = with_copied_caches((args, kwargs))
        result = self.run(call, own_args, own_kwargs)
        if self.graphs != 1:
            self._look_at_whole(model, call, args, kwargs)
        if self.stepped is not None or holds_caches((args, kwargs)):
            result = self.run(call, args, kwargs)
        return result

    def _look_at_whole(
        self, model: torch.nn.Module, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """After a graph break, step in where that plans more attention than Dynamo's pieces do.

        Or as much, where nothing else is gained by the pieces. What stays out of sight is named.
        """
        planned = self._plan_whole(model, call, args, kwargs)
        gain = _sparse(planned.plan) - _sparse(self.plan)
        if gain > 0 or (gain == 0 and self.backend == "eager"):
            self._step_into(model, planned, call)
            return
        seen = {decision.site for decision in self.plan.decisions} if self.plan else set[str]()
        left_out = {decision.site for decision in planned.plan.decisions} - seen - self.unplanned.keys()
        self.unplanned |= dict.fromkeys(sorted(left_out), "not in a captured graph, because of a graph break")

    def _step_into(self, model: torch.nn.Module, planned: PlannedGraph, call: Call) -> None:
        parallelism = Parallelism.of(model)
        if parallelism is not None:
            planned = _followed(planned, parallelism)
        self._adopt(planned, call)
        self.stepped = _Stepped(model, planned, module_paths(model), parallelism)

    def _plan_whole(
        self, model: torch.nn.Module, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> PlannedGraph:
        try:
            capture = capture_module(model, args, kwargs)
        except CannotCapture:
            capture = capture_module(model, args, kwargs, runs=True)
        return self.plan_graph(capture, call, Memory(), self.name)

    def _step(self, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the model as it is written, its attention as planned; a call that goes another way is planned anew."""
        assert self.stepped is not None
        try:
            return self.stepped.run(call, args, kwargs)
        except OutOfStep:
            self._step_into(self.stepped.model, self._plan_whole(self.stepped.model, call, args, kwargs), call)
            return self.stepped.run(call, args, kwargs)

    def _explain(self, error: BaseException, call: Call) -> None:
        """Raise what torch says of a call as an error of ours, where there is one."""
        if isinstance(error, PlannerError):
            raise error from None
        if isinstance(error, Unsupported):
            raise CannotCapture(self.name, f"fullgraph=True, and {str(error).splitlines()[0]}") from error
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            largest = self._largest()
            sizes = (largest.site, largest.layout, largest.heads, largest.head_dim) if largest is not None else None
            raise OutOfMemory(self.name, call.signature(), str(error).splitlines()[0], sizes) from error

    def _largest(self) -> Decision | None:
        """The largest attention planned so far."""
        return max(self.plan.decisions, key=lambda decision: decision.dense_flops, default=None) if self.plan else None

    def _compile_graph(self, graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """The torch.compile backend: plan a graph, rewrite it, hand it on."""
        current: _Current = self.local.current
        self.startup.lap("capture")
        reason = why_not_lower(graph)
        if reason is not None:
            self.unplanned |= dict.fromkeys(attention_calls(graph), reason)
            self._note(self.plan_graph(Capture.empty(), current.call, current.memory, self.name))
            return graph.forward if self.backend == "eager" else lookup_backend(self.backend)(graph, list(inputs))
        capture = capture_graph(graph, inputs)
        self.startup.lap("lower")
        planned = self.plan_graph(capture, current.call, current.memory, self.name)
        rewrite(capture, planned, current.call)
        if not has_kernels(capture.device):
            self.hoistings += filter(None, [hoist(capture, planned.plan)])
        self._note(planned)
        self.startup.lap("plan")
        run = capture.graph.forward
        if self.backend != "eager":
            run = _refusing_gradients(compile_blocks(capture.graph, lookup_backend(self.backend)).run)
            self.startup.lap(self.backend)
        return self._carrying(run, planned)

    def _note(self, planned: PlannedGraph) -> None:
        """Add what was planned of one graph to what was planned of the call."""
        current: _Current = self.local.current
        self.graphs += 1
        current.plan = planned.plan if current.plan is None else _joined(current.plan, planned.plan)
        self._adopt(replace(planned, plan=current.plan), current.call)

    def _adopt(self, planned: PlannedGraph, call: Call) -> None:
        self.plan = planned.plan
        for name in planned.guards:
            self.digests[name] = call.digest(name)
            self._remember(name, dict(call.tensors)[name])

    def _carrying(self, run: Callable[..., Any], planned: PlannedGraph) -> Callable[..., Any]:
        """After a graph break the next graph's inputs are this one's outputs: note which tokens they hold."""

        def run_and_carry(*args: Any) -> Any:
            results = run(*args)
            current: _Current | None = getattr(self.local, "current", None)
            if current is not None:
                for result, shadow in zip(results, planned.outputs, strict=False):
                    if shadow is not None and isinstance(result, torch.Tensor):
                        current.memory.shadows[result] = shadow
            self.startup.lap("run")
            return results

        return run_and_carry

    def _remember(self, name: str, tensor: torch.Tensor) -> None:
        # Tensors made under inference_mode do not count their changes: their values are compared every time.
        if not tensor.is_inference():
            self.seen[name] = (weakref.ref(tensor), tensor._version)

    def _is_seen(self, name: str, tensor: torch.Tensor) -> bool:
        if name not in self.seen or tensor.is_inference():
            return False
        seen, version = self.seen[name]
        return seen() is tensor and version == tensor._version

    def _is_equal(self, name: str, tensor: torch.Tensor, call: Call) -> bool:
        if call.digest(name) != self.digests[name]:
            return False
        self._remember(name, tensor)
        return True


def _sparse(plan: Plan | None) -> int:
    """How many sites of a plan are sparse."""
    return 0 if plan is None else sum(decision.is_sparse for decision in plan.decisions)


def _followed(planned: PlannedGraph, parallelism: Parallelism) -> PlannedGraph:
    """What was planned, dense where it cannot be followed on several devices."""
    decisions = list[Decision]()
    for decision in planned.plan.decisions:
        reason = parallelism.why_not(decision) if decision.is_sparse else None
        decisions.append(decision if reason is None else decision.as_dense(reason))
    return replace(planned, plan=replace(planned.plan, decisions=tuple(decisions)))


def _refusing_gradients(run: Callable[..., Any]) -> Callable[..., Any]:
    """What a backend lowered knows no gradients: where they are asked for, asking is an error."""

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
class _Stepped:
    """A model as it is written, and what was planned of it."""

    model: torch.nn.Module
    planned: PlannedGraph
    paths: dict[int, str]
    parallelism: Parallelism | None

    def run(self, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Raises OutOfStep."""
        with PlannedCalls(self.planned, self.paths, call, self.parallelism):
            return self.model._call_impl(*args, **kwargs)


@dataclass
class _Current:
    """The call under way, whose graphs Dynamo hands over one by one."""

    call: Call
    memory: Memory = field(default_factory=Memory)
    plan: Plan | None = None


def _joined(first: Plan, second: Plan) -> Plan:
    """One plan for the graphs of one call; sites that share a name are numbered."""
    taken = {decision.site for decision in first.decisions}
    added = list(first.decisions)
    for decision in second.decisions:
        name, number = decision.site, 1
        while name in taken:
            name, number = f"{decision.site}#{number}", number + 1
        taken.add(name)
        added.append(replace(decision, site=name))
    return replace(
        first,
        decisions=tuple(added),
        noise=first.noise or second.noise,
        other_flops=first.other_flops + second.other_flops,
        other_seconds=first.other_seconds + second.other_seconds,
    )
