"""Block replay: a call of a model runs again from one of its blocks on, without the blocks before it.

Skipped blocks return NaN in the shapes of their results, without any computation. The first block that runs gets the
arguments that it had in the whole call. Where a later operation reads the result of a skipped block (a skip
connection, say), the replayed result is NaN, and the caller has to run the call whole.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.utils._pytree as pytree

from planner.capture.patched_forward import replaced

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
StandIn = Callable[[int, Callable[..., Any], Arguments], Any]
"""Called in place of a block with its number, its own forward and its arguments."""


def block_of(path: str) -> str:
    """Return the outermost numbered module that contains a module: ``blocks.3`` of ``blocks.3.attn``; else its path."""
    numbered = re.match(r".*?\.\d+(?=\.|$)", path)
    return numbered[0] if numbered else path


class BlockReplay:
    """A call that can be replayed from each of its blocks on, in turn, if each block runs once and in this order.

    blocks: their paths; paths without a module in the model are left out.
    """

    def __init__(
        self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], blocks: Iterable[str]
    ) -> None:
        modules = dict(model.named_modules())
        self._model, self._call = model, (args, kwargs)
        self._names = [name for name in dict.fromkeys(blocks) if name in modules]
        self._modules = [modules[name] for name in self._names]
        self._results = dict[int, Any]()
        self._inputs: Arguments | None = None
        self._reached, self._is_traced = 0, False

    def reach(self, block: str) -> bool:
        """Move on to a block; tell whether the call can be replayed from there. Blocks before this one are refused."""
        if not self._is_traced:
            if block in self._names[:1]:
                return True
            self._trace()
        while self._inputs is not None and block in self._names[self._reached + 1 :]:
            self._advance()
        return self._inputs is not None and self._names[self._reached] == block

    @property
    def skipped(self) -> frozenset[str]:
        """The blocks before the first that runs."""
        return frozenset(self._names[: self._reached])

    def run(self) -> Any:
        """Run the call from the reached block on and return its result; NaN where it depends on a skipped block."""
        if not self._is_traced:
            return self._trace()

        def replay(number: int, forward: Callable[..., Any], arguments: Arguments) -> Any:
            if number < self._reached:
                return self._skip(number)
            args, kwargs = self._reached_inputs() if number == self._reached else arguments
            return forward(*args, **kwargs)

        return self._run(replay)

    def _trace(self) -> Any:
        """Run the call whole and return its result; store the blocks' result shapes and the first block's arguments."""
        entered, inputs = list[int](), list[Arguments]()

        def trace(number: int, forward: Callable[..., Any], arguments: Arguments) -> Any:
            entered.append(number)
            if len(entered) == 1:
                inputs.append(clone_tensors(arguments))
            result = forward(*arguments[0], **arguments[1])
            self._results[number] = pytree.tree_map_only(torch.Tensor, _nan_like, result)
            return result

        result = self._run(trace)
        self._is_traced = True
        self._inputs = inputs[0] if entered == list(range(len(self._names))) and entered else None
        return result

    def _advance(self) -> None:
        """Run the reached block alone, and store the arguments of the next one."""
        following = self._reached + 1
        inputs = list[Arguments]()

        def advance(number: int, forward: Callable[..., Any], arguments: Arguments) -> Any:
            if number == following:
                inputs.append(arguments)
            if number != self._reached:
                return self._skip(number)
            args, kwargs = self._reached_inputs()
            return forward(*args, **kwargs)

        self._run(advance)
        self._inputs, self._reached = inputs[0] if len(inputs) == 1 else None, following

    def _skip(self, number: int) -> Any:
        """Return NaN in place of a block's result, in new memory, which later operations may write to."""
        return clone_tensors(self._results[number])

    def _reached_inputs(self) -> Arguments:
        """Copy the arguments of the reached block, because the block may write to them."""
        assert self._inputs is not None
        return clone_tensors(self._inputs)

    def _run(self, stand_in: StandIn) -> Any:
        """Call the model with a stand-in for its blocks."""
        args, kwargs = self._call
        with self._replaced(stand_in):
            return self._model._call_impl(*args, **kwargs)

    def _replaced(self, stand_in: StandIn) -> AbstractContextManager[None]:
        """Replace the blocks' forward while open, on this thread alone."""
        thread = threading.get_ident()

        def replacement(number: int, own: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                is_own_thread = threading.get_ident() == thread
                return stand_in(number, own, (args, kwargs)) if is_own_thread else own(*args, **kwargs)

            return forward

        return replaced({module: replacement(number, module.forward) for number, module in enumerate(self._modules)})


def clone_tensors(values: Any) -> Any:
    """Copy nested values, their tensors cloned."""
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, values)


def _nan_like(tensor: torch.Tensor) -> torch.Tensor:
    """Return NaN of a tensor's shape and dtype, one element of memory; the tensor itself if its dtype has no NaN."""
    return tensor.new_full((), torch.nan).expand(tensor.shape) if tensor.is_floating_point() else tensor
