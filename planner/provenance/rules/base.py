"""What rules work with: shadows, the call of an operation that a rule sees, and what rules have in common.

A *shadow* is an int64 tensor of a tensor's shape, of stride 0 along the dimensions in which provenance does not vary.
It holds the id of the input element that each element came from. Two kinds of provenance are missing: UNKNOWN, from a
token we no longer know; and no shadow at all, None, from no token, which is global.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

Shadow = torch.Tensor | None
ShadowTree = Any
"""A shadow, or a nest of them for an operation with several results."""

SOURCE_STRIDE = 2**44
"""Ids of the k-th source begin at k * SOURCE_STRIDE."""

UNKNOWN = -1
"""The id of an element that came from a token we no longer know."""

CONDITIONING_ID = SOURCE_STRIDE
"""The first id of tokens that were made of no input's, such as zeros."""

FIRST_INPUT_ID = 2 * SOURCE_STRIDE
"""Ids from here on are of the call's inputs; below are tokens that are weights, and tokens made of no input's."""

MAX_ELEMENTS = 2**27
"""The largest shadow that is written out (1 GiB); the pixels of any image or video stay far below."""


class Unsupported(Exception):
    """A case that a rule does not know: its result has unknown provenance."""


@dataclass(frozen=True)
class OpCall:
    """One call of an operation, as a rule sees it.

    target: the operation. arguments, options: what it is called with, in place of each tensor its shadow; of a tensor
    without one, an object that has its ``shape``, and its values where they steer (see steering). value: the result
    without values, a tensor or a nest of them.
    """

    target: Any
    arguments: Sequence[Any]
    options: Mapping[str, Any]
    value: Any

    @property
    def shape(self) -> torch.Size:
        """The shape of the result."""
        return self.value.shape

    @property
    def first(self) -> torch.Tensor:
        """The shadow of the first argument; raises Unsupported where it has none."""
        if not isinstance(self.arguments[0], torch.Tensor):
            raise Unsupported("its first argument has no provenance")
        return self.arguments[0]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument by its position or its name."""
        return self.arguments[position] if len(self.arguments) > position else self.options.get(name, default)

    def with_arguments(self, *arguments: Any) -> OpCall:
        """Return the call with other positional arguments and without options."""
        return replace(self, arguments=arguments, options={})


def shadow_of(argument: Any) -> Shadow:
    """Return an argument that is a shadow, None for any other."""
    return argument if isinstance(argument, torch.Tensor) else None


def steering(argument: Any) -> Any:
    """Return the values of an argument that says what goes where; raises Unsupported where they are not known."""
    if isinstance(argument, list | tuple):
        return [steering(item) for item in argument]
    if hasattr(argument, "get"):
        return argument.get()
    if isinstance(argument, torch.Tensor):
        raise Unsupported("its indices come from the input tokens")
    return argument


def compress(shadow: torch.Tensor) -> torch.Tensor:
    """Return a shadow with size 1 along the dimensions in which it does not vary."""
    for dim in range(shadow.dim()):
        if shadow.stride(dim) == 0 and shadow.size(dim) > 1:
            shadow = shadow.narrow(dim, 0, 1)
    return shadow


def varies_along(shadow: torch.Tensor, dim: int) -> bool:
    """Tell whether provenance may vary along a dimension of a shadow."""
    return shadow.size(dim) > 1 and shadow.stride(dim) != 0


def resized(shape: Sequence[int], dim: int, size: int) -> list[int]:
    """Return a shape with another size along one dimension, counted from the front."""
    return [*shape[:dim], size, *shape[dim + 1 :]]


def unknown(value: Any) -> ShadowTree:
    """Return the shadow of a result, or a nest of them, of which nothing is known."""
    if isinstance(value, list | tuple):
        return [unknown(item) for item in value]
    return torch.tensor(UNKNOWN).expand(value.shape) if isinstance(value, torch.Tensor) else None


def merge(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the provenance of elements made from two, of shapes that broadcast to the result's.

    What is no input's yields to what is; elements at the same place of two inputs of one shape (an image and its
    control residual) keep the first; two other elements give UNKNOWN.
    """
    if a is b or (a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()):
        return a
    # What is constant along every dimension in which the other varies says nothing about tokens.
    for one, other in ((a, b), (b, a)):
        if one.numel() == 1 and other.numel() > 1:
            return other
    agree = (a == b) | (a % SOURCE_STRIDE == b % SOURCE_STRIDE)
    yields = (a < FIRST_INPUT_ID) | (b < FIRST_INPUT_ID)
    return torch.where(yields, torch.maximum(a, b), torch.where(agree, torch.minimum(a, b), UNKNOWN))


def contract(shadow: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    """Return a shadow of size 1 along dimensions: the first element that came from an input stands for all."""
    for dim in dims:
        first = shadow.narrow(dim, 0, min(1, shadow.size(dim)))
        if varies_along(shadow, dim) and bool((first < FIRST_INPUT_ID).any()):
            shadow = compress(shadow)
            first = shadow.gather(dim, (shadow >= FIRST_INPUT_ID).to(torch.int8).argmax(dim, keepdim=True))
        shadow = first
    return shadow


def overwritten(whole: Any, indices: Sequence[Any], values: Any, shape: Sequence[int]) -> torch.Tensor:
    """Return the shadow of a tensor of a shape into which values were written where indices say.

    It varies along the indexed dimensions, and where the values do. whole, values: their shadows, or anything else
    where they have none. Raises Unsupported.
    """
    elements = torch.Size(shape).numel()
    if elements > MAX_ELEMENTS:
        raise Unsupported(f"its shadow would hold {elements} elements")
    shadow = whole if isinstance(whole, torch.Tensor) else torch.tensor(CONDITIONING_ID).expand(shape)
    shadow = shadow.clone(memory_format=torch.contiguous_format)
    written = values if isinstance(values, torch.Tensor) else torch.tensor(CONDITIONING_ID)
    torch.ops.aten.index_put_(shadow, list(indices), written)
    for dim in range(shadow.dim()):  # channels, most often, do not vary
        first = shadow.narrow(dim, 0, min(1, shadow.size(dim)))
        shadow = first if torch.equal(first.expand(shadow.shape), shadow) else shadow
    return shadow.expand(shape)
