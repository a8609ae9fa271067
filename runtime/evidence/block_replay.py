"""A call of a model taken up at one of its blocks, so that what is the same before it is not run again.

Blocks that are passed over give back NaN of the shapes that they gave, and cost nothing; the block that is reached gets
the arguments that it had. Where anything but that block needs what others made (a skip connection, say), the result is
NaN, and the call is to be run whole.
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
"""What is called in the place of a block: its number, its own forward, its arguments."""


def block_of(path: str) -> str:
    """The outermost numbered module that a module lies in: ``blocks.3`` of ``blocks.3.attn``, itself without one."""
    numbered = re.match(r".*?\.\d+(?=\.|$)", path)
    return numbered[0] if numbered else path


class Resumed:
    """A call that can be taken up at each of some blocks in turn, if each of them is run once, in their order."""

    def __init__(
        self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], blocks: Iterable[str]
    ) -> None:
        modules = dict(model.named_modules())
        self._model, self._call = model, (args, kwargs)
        self._names = [name for name in dict.fromkeys(blocks) if name in modules]
        self._modules = [modules[name] for name in self._names]
        self._made = dict[int, Any]()
        self._inputs: Arguments | None = None
        self._at, self._is_noted = 0, False

    def reach(self, block: str) -> bool:
        """Go on to a block; False where the call cannot be taken up there."""
        if not self._is_noted:
            if block in self._names[:1]:
                return True
            self._note()
        while self._inputs is not None and block in self._names[self._at + 1 :]:
            self._advance()
        return self._inputs is not None and self._names[self._at] == block

    @property
    def passed(self) -> frozenset[str]:
        """The blocks before the one that was reached."""
        return frozenset(self._names[: self._at])

    def run(self) -> Any:
        """The call's result, from the block that was reached on; NaN where it needs a block that was passed over."""
        if not self._is_noted:
            return self._note()

        def resume(number: int, forward: Callable[..., Any], given: Arguments) -> Any:
            if number < self._at:
                return self._stands_for(number)
            args, kwargs = self._taken() if number == self._at else given
            return forward(*args, **kwargs)

        with self._replaced(resume):
            return self._run()

    def _note(self) -> Any:
        """The call's result, run whole; what blocks make and the first is given are noted."""
        entered, inputs = list[int](), list[Arguments]()

        def note(number: int, forward: Callable[..., Any], given: Arguments) -> Any:
            entered.append(number)
            if len(entered) == 1:
                inputs.append(copied(given))
            made = forward(*given[0], **given[1])
            self._made[number] = pytree.tree_map_only(torch.Tensor, _nothing, made)
            return made

        with self._replaced(note):
            result = self._run()
        self._is_noted = True
        self._inputs = inputs[0] if entered == list(range(len(self._names))) and entered else None
        return result

    def _advance(self) -> None:
        """Run the block that was reached, and keep what the next one is given."""
        following = self._at + 1
        inputs = list[Arguments]()

        def step(number: int, forward: Callable[..., Any], given: Arguments) -> Any:
            if number == following:
                inputs.append(given)
            if number != self._at:
                return self._stands_for(number)
            args, kwargs = self._taken()
            return forward(*args, **kwargs)

        with self._replaced(step):
            self._run()
        self._inputs, self._at = inputs[0] if len(inputs) == 1 else None, following

    def _stands_for(self, number: int) -> Any:
        """NaN in the place of what a block makes, which others may write to."""
        return copied(self._made[number])

    def _taken(self) -> Arguments:
        """The arguments of the block that was reached; a copy, in which the block may write."""
        assert self._inputs is not None
        return copied(self._inputs)

    def _run(self) -> Any:
        args, kwargs = self._call
        return self._model._call_impl(*args, **kwargs)

    def _replaced(self, stand_in: StandIn) -> AbstractContextManager[None]:
        """While open, something stands in for the blocks, on this thread alone."""
        thread = threading.get_ident()

        def made(number: int, own: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                is_mine = threading.get_ident() == thread
                return stand_in(number, own, (args, kwargs)) if is_mine else own(*args, **kwargs)

            return forward

        return replaced({module: made(number, module.forward) for number, module in enumerate(self._modules)})


def copied(values: Any) -> Any:
    """Values with their tensors copied."""
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, values)


def _nothing(tensor: torch.Tensor) -> torch.Tensor:
    """NaN of a tensor's shape, which takes no memory; the tensor itself where its type has none."""
    return tensor.new_full((), torch.nan).expand(tensor.shape) if tensor.is_floating_point() else tensor
