"""Eager interception: each attention call of a model that runs as it is written meets the decision of a plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from planner.plan.plan import Decision

ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
"""The arguments that scaled_dot_product_attention takes by position."""


class SdpaMode(TorchFunctionMode, ABC):
    """While entered, this thread's calls of scaled_dot_product_attention go through ``attend``, a decision each.

    decisions: those of the calls, in order.
    """

    def __init__(self, decisions: Iterable[Decision]) -> None:
        super().__init__()
        self._decisions = iter(decisions)

    def decision(self) -> Decision:
        """Return the decision that the current call meets: the next."""
        return next(self._decisions)

    @abstractmethod
    def attend(self, decision: Decision, arguments: dict[str, Any]) -> torch.Tensor:
        """Return the result of one call, (B, H, N, E).

        arguments: those of the call, by the names of scaled_dot_product_attention; those left out are missing.
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
            self.decision()  # The attention inside is called below the level of torch functions.
        if func is not F.scaled_dot_product_attention:
            return func(*args, **options)
        return self.attend(self.decision(), {**dict(zip(ARGUMENTS, args, strict=False)), **options})
