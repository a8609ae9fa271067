"""Operations that choose or overwrite what indices or a mask name."""

from __future__ import annotations

import torch

from planner.provenance.rules.base import (
    OpCall,
    Shadow,
    Unsupported,
    compress,
    overwritten,
    resized,
    shadow_of,
    steering,
)
from planner.provenance.rules.pointwise import pointwise
from planner.provenance.rules.table import RULES


@RULES.register("index")
def index(call: OpCall) -> Shadow:
    """Choose along the indexed dimensions, in which alone the shadow is written out."""
    indices = steering(call.arguments[1])
    shadow = compress(call.first)
    for dim, places in enumerate(indices):
        if places is not None:
            shadow = shadow.expand(resized(shadow.shape, dim, call.first.size(dim)))
    return torch.ops.aten.index(shadow, indices).expand(call.shape)


@RULES.register("index_select")
def index_select(call: OpCall) -> Shadow:
    """Choose along one dimension."""
    dim = call.arguments[1] % call.first.dim()
    shadow = compress(call.first)
    shadow = shadow.expand(resized(shadow.shape, dim, call.first.size(dim)))
    return shadow.index_select(dim, steering(call.arguments[2])).expand(call.shape)


@RULES.register("embedding")
def embedding(call: OpCall) -> Shadow:
    """Give each row the token of its index."""
    tokens = shadow_of(call.arguments[1])
    if tokens is None:
        raise Unsupported("its indices have no provenance")
    return tokens.unsqueeze(-1).expand(call.shape)


@RULES.register("index_put")
@RULES.register("index_put_")
def index_put(call: OpCall) -> Shadow:
    """Write where the indices say; of no input where nothing was and nothing is written."""
    return overwritten(call.arguments[0], steering(call.arguments[1]), call.arguments[2], call.shape)


@RULES.register("index_copy")
@RULES.register("index_copy_")
def index_copy(call: OpCall) -> Shadow:
    """Write along one dimension."""
    before = [None] * (call.arguments[1] % len(call.shape))
    return overwritten(call.arguments[0], [*before, steering(call.arguments[2])], call.arguments[3], call.shape)


@RULES.register("masked_scatter")
def masked_scatter(call: OpCall) -> Shadow:
    """Write the first tokens of the source where the mask is true, in order."""
    mask = steering(call.arguments[1]).expand(call.shape)
    source = call.arguments[2]
    if isinstance(source, torch.Tensor):
        source = source.reshape(-1)[: int(mask.sum())]
    return overwritten(call.arguments[0], [mask], source, call.shape)


@RULES.register("where")
def where(call: OpCall) -> Shadow:
    """Choose between tokens by a mask whose values are known; merge them where they are not."""
    mask, *choices = call.arguments
    shadows = [choice for choice in choices if isinstance(choice, torch.Tensor)]
    if len(shadows) == 2 and hasattr(mask, "get"):
        try:
            return torch.where(mask.get(), *map(compress, shadows)).expand(call.shape)
        except Unsupported:
            pass
    return pointwise(call.with_arguments(*shadows))
