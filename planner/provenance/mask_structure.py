"""Masks: which of them say the same to every query that they let in at all.

A pattern goes together with a mask of keys. Some models spell that as a mask of queries and keys: expanded to all
queries, or as the outer product of the mask of a padded sequence with itself. Whether one is such a product follows
from how it is computed, whatever its values.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.fx import Node

from planner.capture.ops import Kind, info, is_overwritten, is_pure, op_name
from planner.plan.site import MaskKind


def kind_of(mask: Node) -> MaskKind | None:
    """Return the kind of a boolean mask (…, queries, keys) that is alike for all heads, None for any other mask."""
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
    """Tell whether a mask that varies along queries and keys is a product of masks that vary along one of them."""
    value = mask.meta["val"]
    rank = value.dim()
    if not {rank - 2, rank - 1} <= _varies(mask):
        return True
    known, factors = info(mask.target), mask.all_input_nodes
    if is_overwritten(mask):
        return False
    if known.is_conjunction and (value.dtype == torch.bool or known.name == "mul"):  # bits of whole numbers are not
        return all(_is_product(factor) and factor.meta["val"].dim() == rank for factor in factors)
    return known.kind is Kind.COPY and _is_product(factors[0])


def _varies(node: Node) -> frozenset[int]:
    """Return the dimensions along which a tensor's values may differ."""
    value = node.meta["val"]
    every = frozenset(_long_dims(value.shape))
    parents = [parent for parent in node.all_input_nodes if isinstance(parent.meta.get("val"), torch.Tensor)]
    if node.op != "call_function" or not parents or not is_pure(node.target) or is_overwritten(node):
        return every
    name, rank, source = op_name(node.target), value.dim(), parents[0].meta["val"]
    if info(node.target).kind in (Kind.COPY, Kind.POINTWISE) or name in ("expand", "repeat"):
        return every & frozenset(_aligned(parents, rank))
    before, after = _long_dims(source.shape), _long_dims(value.shape)
    if name in ("view", "reshape", "unsqueeze", "squeeze") and [source.shape[dim] for dim in before] == [
        value.shape[dim] for dim in after
    ]:
        return frozenset(new for new, old in zip(after, before, strict=True) if old in _varies(parents[0]))
    if name in ("transpose", "permute", "mT"):
        marked = [torch.empty([2 if at == dim else 1 for at in range(rank)]) for dim in _varies(parents[0])]
        return frozenset(node.target(mark, *node.args[1:]).shape.index(2) for mark in marked)  # type: ignore[operator]
    return every


def _aligned(parents: Iterable[Node], rank: int) -> Iterable[int]:
    """Yield the dimensions of a result of this rank along which its parents, aligned at the end, vary."""
    for parent in parents:
        shift = rank - parent.meta["val"].dim()
        yield from (dim + shift for dim in _varies(parent))


def _long_dims(shape: Iterable[int]) -> list[int]:
    """Return the dimensions that are longer than one."""
    return [dim for dim, size in enumerate(shape) if size > 1]
