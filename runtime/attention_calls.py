"""Stepping into an eager model's attention: each call meets the decision that a plan made for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from planner.plan import Decision

_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class AttentionCalls(TorchFunctionMode, ABC):
    """While entered, the calls of scaled_dot_product_attention, in order, go through ``attend``, a decision each."""

    def __init__(self, decisions: Iterable[Decision]) -> None:
        super().__init__()
        self._decisions = iter(decisions)

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
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self.attend(next(self._decisions), {**dict(zip(_NAMES, args, strict=False)), **(kwargs or {})})
