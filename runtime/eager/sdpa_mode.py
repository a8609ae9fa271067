"""Eager interception: a torch function mode that passes each attention call of a model to a decision of a plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from planner.capture.ops import SDPA
from planner.plan.plan import Decision

ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
"""The arguments that scaled_dot_product_attention takes by position."""


class SdpaMode(TorchFunctionMode, ABC):
    """A mode in which this thread's calls of scaled_dot_product_attention go to ``attend``, each with its decision.

    decisions: those of the calls, in order.
    """

    def __init__(self, decisions: Iterable[Decision]) -> None:
        super().__init__()
        self._decisions = iter(decisions)

    def decision(self) -> Decision:
        """Return the decision of the current call: the next one of the plan."""
        return next(self._decisions)

    @abstractmethod
    def attend(self, decision: Decision, arguments: dict[str, Any]) -> torch.Tensor:
        """Compute the result of one call, (B, H, N, E).

        arguments: those that the call passes, by their names in scaled_dot_product_attention: query (B, H, N, D), key
        (B, H', M, D), value (B, H', M, E) and options.
        """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        if func is F.multi_head_attention_forward and not options.get("need_weights", True):
            return self._multi_head_attention(*args, **options)
        if func is not SDPA:
            return func(*args, **options)
        return self._attention(*args, **options)

    def _attention(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.attend(self.decision(), {**dict(zip(ARGUMENTS, args, strict=False)), **kwargs})

    @cached_property
    def _multi_head_attention(self) -> Callable[..., Any]:
        """The function behind nn.MultiheadAttention, with this mode's attention in place of torch's own.

        Torch leaves all modes before it runs the function, so that the attention inside would not come here.
        """
        original = F.multi_head_attention_forward
        names = {**vars(F), "scaled_dot_product_attention": self._attention}
        function = FunctionType(original.__code__, names, original.__name__, original.__defaults__)
        function.__kwdefaults__ = original.__kwdefaults__
        return function
