"""Masks: which of them say the same to every query that they let in at all.

A pattern goes together with a mask of keys. Some models spell that as a mask of queries and keys: expanded to all
queries, or as the outer product of the mask of a padded sequence with itself. Whether one is such a product follows
from how it is made, whatever its values.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.fx import Node

from planner.capture.ops import op_name
from planner.plan.site import MaskKind

_SAME = frozenset("to _to_copy clone contiguous alias detach logical_not bitwise_not eq ne gt ge lt le".split())
_BOTH = frozenset("mul bitwise_and logical_and __and__".split())


def kind_of(mask: Node) -> MaskKind | None:
    """The kind of a boolean mask (…, queries, keys) that is alike for all heads, None for any other mask."""
    value = mask.meta["val"]
    if value.dtype != torch.bool or value.dim() < 2:
        return None
    varies = _varies(mask)
    if value.dim() == 4 and 1 in varies:
        return None
    if value.dim() - 2 not in varies:
        return "keys"
    return "both" if _is_product(mask) else None


def _is_product(mask: Node) -> bool:
    """Whether a mask that varies along queries and keys is a product of masks that vary along one of them."""
    rank = mask.meta["val"].dim()
    if not {rank - 2, rank - 1} <= _varies(mask):
        return True
    name, parents = op_name(mask.target), mask.all_input_nodes
    if name in _BOTH:
        return all(_is_product(parent) and parent.meta["val"].dim() == rank for parent in parents)
    return name in ("to", "_to_copy", "clone", "contiguous", "alias", "detach") and _is_product(parents[0])


def _varies(node: Node) -> frozenset[int]:
    """The dimensions along which a tensor's values may differ."""
    value = node.meta["val"]
    every = frozenset(dim for dim, size in enumerate(value.shape) if size > 1)
    parents = [parent for parent in node.all_input_nodes if isinstance(parent.meta.get("val"), torch.Tensor)]
    name, rank = op_name(node.target), value.dim()
    if node.op != "call_function" or not parents:
        return every
    source = parents[0].meta["val"]
    if name in _SAME | _BOTH or name in ("expand", "repeat"):
        return every & frozenset(_aligned(parents, rank))
    if name in ("view", "reshape", "unsqueeze", "squeeze") and _long(source.shape) == _long(value.shape):
        lengths = [dim for dim, size in enumerate(value.shape) if size > 1]
        before = [dim for dim, size in enumerate(source.shape) if size > 1]
        return frozenset(new for new, old in zip(lengths, before, strict=True) if old in _varies(parents[0]))
    if name in ("transpose", "permute", "mT"):
        marked = [torch.empty([2 if at == dim else 1 for at in range(rank)]) for dim in _varies(parents[0])]
        return frozenset(node.target(mark, *node.args[1:]).shape.index(2) for mark in marked)  # type: ignore[operator]
    return every


def _aligned(parents: Iterable[Node], rank: int) -> Iterable[int]:
    """Dimensions of a result of this rank along which what it is made of, aligned at the end, varies."""
    for parent in parents:
        shift = rank - parent.meta["val"].dim()
        yield from (dim + shift for dim in _varies(parent))


def _long(shape: Iterable[int]) -> list[int]:
    return [size for size in shape if size > 1]
