"""Stepping into a model that runs as it is written: each attention call meets the decision that was made for it.

Dynamo captures no model whole whose graph depends on values (experts that tokens are routed to, lengths of prompts),
nor one whose modules are hooked (weights that are brought in when they are needed, blocks that are skipped). Its
attention calls are known by the modules that make them, and follow the plan all the same.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F

from planner.capture.call import Call
from planner.plan.noise_level import NoiseLevel
from planner.plan.plan import Decision
from planner.runtime.attention.operator import OPTIONS, grouped_attention, mask_of_keys, mask_of_queries
from planner.runtime.eager.context_parallel import Parallelism
from planner.runtime.eager.sdpa_mode import AttentionCalls
from planner.stages import PlannedGraph

_MODULE_CALL = torch.nn.Module._call_impl.__code__


class OutOfStep(Exception):
    """A model's attention calls are not those that were planned."""


class PlannedCalls(AttentionCalls):
    """While entered, the attention calls of a model follow what was planned; raises OutOfStep.

    paths: the model's modules by identity. call: the call of the model under way, which tells the noise level where the
    plan depends on it. parallelism: how the model is spread over devices.
    """

    def __init__(
        self, planned: PlannedGraph, paths: dict[int, str], call: Call, parallelism: Parallelism | None
    ) -> None:
        plan = planned.plan
        super().__init__(())
        self._parallelism, self._kernel_patterns = parallelism, plan.kernel_patterns
        self._planned = {d.site: (d, site.mask_kind) for d, site in zip(plan.decisions, planned.sites, strict=True)}
        self._paths, self._made = paths, Counter[str]()
        level = None if plan.noise is None else NoiseLevel.parse(plan.noise)
        self._noise = None if level is None else level.of(call.tensor(level.argument))

    def decision(self) -> Decision:
        """That of the module whose call is under way, for as many times as it has attended."""
        name = _innermost(self._paths) or "attention"
        number = self._made[name]
        self._made[name] += 1
        self._site = f"{name}#{number}" if number else name
        if self._site not in self._planned:
            raise OutOfStep
        return self._planned[self._site][0]

    def attend(self, decision: Decision, given: dict[str, Any]) -> torch.Tensor:
        """Attention under the decision's rules, dense where it is dense."""
        spread = self._parallelism if decision.is_sparse else None
        decision = decision if spread is None else spread.share(decision)
        if not decision.is_sparse:
            return F.scaled_dot_product_attention(**given)
        order = None if spread is None else spread.order(decision.layout, given["query"].device)
        query, key, mask, kind = given["query"], given["key"], given.get("attn_mask"), self._planned[self._site][1]
        if (*query.shape[:2], key.shape[1], query.shape[2], *key.shape[2:]) != decision.shape:
            raise OutOfStep
        options = OPTIONS | given
        if kind is not None:
            options["attn_mask"] = mask_of_keys(given["attn_mask"])
        tensors, noise = (query, key, given["value"]), self._noise if decision.is_gated else None
        if order is not None:
            tensors = tuple(tensor.index_select(2, order[0]) for tensor in tensors)
            options["attn_mask"] = None if mask is None else options["attn_mask"].index_select(-1, order[0])
        settings = (options[name] for name in OPTIONS)
        shared = self._kernel_patterns.get(decision.layout, "")
        made = grouped_attention(*tensors, *settings, decision.layout, decision.pattern, noise, kernel_patterns=shared)
        if order is not None:
            made = made.index_select(2, order[1])
        return made if kind != "both" else torch.where(mask_of_queries(given["attn_mask"]), made, 0.0)


def module_paths(model: torch.nn.Module) -> dict[int, str]:
    """The paths of a model's modules, by identity."""
    return {id(module): path for path, module in model.named_modules()}


def _innermost(paths: dict[int, str]) -> str | None:
    """Path of the module whose call is under way on this thread, the innermost of those that have one."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _MODULE_CALL:
            path = paths.get(id(frame.f_locals["self"]))
            if path is not None:
                return path
        frame = frame.f_back
    return None
