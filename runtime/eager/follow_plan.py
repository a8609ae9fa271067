"""Following a plan eagerly: each attention call of a model follows the decision of the module that calls it.

Dynamo cannot capture a model whole whose graph depends on values (experts that tokens are routed to, lengths of
prompts) or whose modules are hooked (offloaded weights, skipped blocks). Such a model runs without a captured graph,
and its attention calls are intercepted.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import torch

from planner.capture.call import Call
from planner.capture.ops import SDPA
from planner.errors import PlanDiverged
from planner.plan.noise_level import NoiseLevel
from planner.plan.plan import Decision
from planner.runtime.attention.operator import OPTIONS, grouped_attention, mask_of_keys, mask_of_queries
from planner.runtime.eager.context_parallel import Parallelism
from planner.runtime.eager.sdpa_mode import SdpaMode
from planner.shapes import times
from planner.stages import PlannedGraph

_MODULE_CALL = torch.nn.Module._call_impl.__code__


class FollowPlan(SdpaMode):
    """A mode in which the attention calls of a model follow its plan; they raise PlanDiverged where they are not in it.

    paths: paths of the model's modules by their identity. call: the current call of the model, for its noise level.
    parallelism: the division of the model among devices, None on one device.
    """

    def __init__(
        self, planned: PlannedGraph, paths: dict[int, str], call: Call, parallelism: Parallelism | None
    ) -> None:
        plan = planned.plan
        super().__init__(())
        self._parallelism, self._kernel_patterns = parallelism, plan.kernel_patterns
        self._planned = {d.site: (d, site.mask_kind) for d, site in zip(plan.decisions, planned.sites, strict=True)}
        self._paths, self._calls = paths, Counter[str]()
        level = None if plan.noise is None else NoiseLevel.parse(plan.noise)
        self._noise = None if level is None else level.of(call.tensor(level.argument))

    def decision(self) -> Decision:
        """Return the next decision of the innermost module that is being called; its calls are counted."""
        name = _innermost(self._paths) or "attention"
        number = self._calls[name]
        self._calls[name] += 1
        self._site = f"{name}#{number}" if number else name
        if self._site not in self._planned:
            raise PlanDiverged(self._site, "no attention", "a call of scaled_dot_product_attention")
        return self._planned[self._site][0]

    def attend(self, decision: Decision, arguments: dict[str, Any]) -> torch.Tensor:
        """Attend under the decision's rules, densely where it is dense; return (B, H, N, E)."""
        if not decision.is_sparse:
            return SDPA(**arguments)
        parallelism = self._parallelism
        order = None
        if parallelism is not None:
            decision = parallelism.share(decision)
            if not decision.is_sparse:
                return SDPA(**arguments)
            order = parallelism.order(decision.layout, arguments["query"].device)
        _check_shape(self._site, decision, arguments["query"], arguments["key"])
        kind = self._planned[self._site][1]
        options = OPTIONS | arguments
        if kind is not None:
            options["attn_mask"] = mask_of_keys(arguments["attn_mask"])
        tensors = tuple(arguments[name] for name in ("query", "key", "value"))
        if order is not None:
            tensors = tuple(tensor.index_select(2, order[0]) for tensor in tensors)
            mask = options["attn_mask"]
            options["attn_mask"] = None if mask is None else mask.index_select(-1, order[0])
        output = grouped_attention(
            *tensors,
            *(options[name] for name in OPTIONS),
            decision.layout,
            decision.pattern,
            self._noise if decision.is_gated else None,
            kernel_patterns=self._kernel_patterns.get(decision.layout, ""),
        )
        if order is not None:
            output = output.index_select(2, order[1])
        return output if kind != "both" else torch.where(mask_of_queries(arguments["attn_mask"]), output, 0.0)


def module_paths(model: torch.nn.Module) -> dict[int, str]:
    """Return the paths of a model's modules, by identity."""
    return {id(module): path for path, module in model.named_modules()}


def _check_shape(site: str, decision: Decision, query: torch.Tensor, key: torch.Tensor) -> None:
    """Raise PlanDiverged unless query, (B, H, N, D), and key, (B, H', M, D), have the shape that was planned."""
    shape = (*query.shape[:2], key.shape[1], query.shape[2], *key.shape[2:])
    if shape != decision.shape:
        names = "batch x heads x key heads x queries x keys x channels"
        raise PlanDiverged(site, f"attention of {names} = {times(decision.shape)}", f"one of {times(shape)}")


def _innermost(paths: dict[int, str]) -> str | None:
    """Return the path of the innermost module that this thread is calling, None outside of all modules with a path."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _MODULE_CALL:
            path = paths.get(id(frame.f_locals["self"]))
            if path is not None:
                return path
        frame = frame.f_back
    return None
