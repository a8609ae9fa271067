"""Operations whose result holds each element where their arguments do."""

from __future__ import annotations

from typing import Any

import torch

from planner.capture.ops import Kind
from planner.provenance.rules.base import OpCall, Shadow, compress, merge, shadow_of
from planner.provenance.rules.table import KIND_RULES, RULES


@KIND_RULES.register(Kind.POINTWISE)
def pointwise(call: OpCall) -> Shadow:
    """Merge the shadows of all arguments, aligned at their last dimensions."""
    rank, merged = len(call.shape), None
    for shadow in _shadows([*call.arguments, *call.options.values()]):
        small = compress(shadow)
        small = small.view(*[1] * (rank - small.dim()), *small.shape) if small.dim() < rank else small
        merged = small if merged is None else merge(merged, small)
    return None if merged is None else merged.expand(call.shape)


@RULES.register("scatter_add")
@RULES.register("index_add")
@RULES.register("dropout")
@RULES.register("feature_dropout")
@KIND_RULES.register(Kind.COPY)
@KIND_RULES.register(Kind.NORMALIZATION)
def keep(call: OpCall) -> Shadow:
    """Keep the tokens of the first argument in their places; of no input where it is of none."""
    shadow = shadow_of(call.arguments[0])
    return None if shadow is None else shadow.expand(call.shape)


@RULES.register("copy_")
def copy(call: OpCall) -> Shadow:
    """Take the tokens that are written."""
    return pointwise(call.with_arguments(call.arguments[1]))


@KIND_RULES.register(Kind.FACTORY)
def forget(_call: OpCall) -> Shadow:
    """Give none: a new tensor of another's shape holds none of its tokens."""
    return None


def _shadows(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [shadow for item in tree for shadow in _shadows(item)] if isinstance(tree, list | tuple) else []
