"""What the zoo's files share: the register of its members, and inputs that many of them take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree

from planner.models.families.flux import flux_ids

Case = tuple[torch.nn.Module, dict[str, Any]]
Build = Callable[..., Case]


@dataclass(frozen=True)
class Member:
    """A class of diffusers' in a small configuration: ``build(*size)`` gives it with inputs of a size.

    sizes: two sizes of what it makes, as its patches see it: (height, width) of a picture, (frames, height, width) of
    a video, (tokens,) of anything else.
    """

    build: Build
    sizes: tuple[tuple[int, ...], ...]

    def case(self, size: tuple[int, ...]) -> Case:
        """Make the model with weights that leave no part of it out, and its inputs: the same at every call.

        A gate whose weights begin at zero would hide all that comes before it, and weights that a class leaves to be
        loaded hold what lay in memory.
        """
        torch.manual_seed(0)
        with unwritten_is_nan():
            model, inputs = self.build(*size)
        with torch.no_grad():
            for parameter in model.parameters():
                if not (parameter.isfinite().all() and parameter.any()):
                    parameter.normal_(std=0.1)
        return model.eval(), inputs


@contextmanager
def unwritten_is_nan() -> Iterator[None]:
    """Tensors that are made empty are filled with NaN."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


ZOO = dict[str, Member]()
"""Every class by name."""


def member(name: str, *sizes: tuple[int, ...]) -> Callable[[Build], Build]:
    """Register the function that builds a class."""

    def register(build: Build) -> Build:
        assert name not in ZOO
        ZOO[name] = Member(build, sizes)
        return build

    return register


def outputs(model: torch.nn.Module, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """All tensors that a model makes."""
    made = model(**inputs)
    leaves = pytree.tree_leaves(dict(made) if hasattr(made, "items") else made)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def distance(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """Of all tensors together."""
    return float(torch.stack([(a - b).norm() for a, b in zip(ours, theirs, strict=True)]).norm())


def text(tokens: int = 10, channels: int = 16) -> torch.Tensor:
    """Embedded text of a batch of two."""
    return torch.randn(2, tokens, channels)


def text_mask(tokens: int = 10) -> torch.Tensor:
    """Which tokens of the text are there: all of the first, some of the second."""
    return torch.tensor([[1] * tokens, [1] * (tokens - 4) + [0] * 4])


def packed(channels: int, *size: int) -> dict[str, torch.Tensor]:
    """Make a packed image with its coordinates, as FLUX takes it."""
    return {
        "hidden_states": torch.randn(2, math.prod(size), channels),
        "img_ids": flux_ids(*size),
        "txt_ids": torch.zeros(10, 3),
    }
