"""Stepping into an eager model's attention: each call meets the decision that a plan made for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from planner.plan.plan import Decision

ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
"""What scaled_dot_product_attention takes by position."""


class AttentionCalls(TorchFunctionMode, ABC):
    """While entered, the calls of scaled_dot_product_attention, in order, go through ``attend``, a decision each."""

    def __init__(self, decisions: Iterable[Decision]) -> None:
        super().__init__()
        self._decisions = iter(decisions)

    def decision(self) -> Decision:
        """The decision that the call under way meets: the next."""
        return next(self._decisions)

    @abstractmethod
    def attend(self, decision: Decision, given: dict[str, Any]) -> torch.Tensor:
        """The result of one call; given: its arguments by name."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        if func is F.multi_head_attention_forward and not options.get("need_weights", True):
            self.decision()  # of the attention within, which is out of reach
        if func is not F.scaled_dot_product_attention:
            return func(*args, **options)
        return self.attend(self.decision(), {**dict(zip(ARGUMENTS, args, strict=False)), **options})
