"""An operation of this package's own, and its rule of provenance: which pixel each token came from."""

import torch
from torch.nn.functional import avg_pool2d

from planner.provenance.rules.base import OpCall, Shadow, compress, varies_along
from planner.provenance.rules.table import RULES


@torch.library.custom_op("slabs::pool", mutates_args=())
def pool(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """Return the means of squares of pixels as tokens: (batch, channels, h, w) to (batch, h w / side², channels)."""
    return avg_pool2d(pixels, side).flatten(2).mT.contiguous()


@pool.register_fake
def _(pixels: torch.Tensor, side: int) -> torch.Tensor:
    batch, channels, h, w = pixels.shape
    return pixels.new_empty(batch, (h // side) * (w // side), channels)


@RULES.register("slabs::pool")
def provenance_of_pool(call: OpCall) -> Shadow:
    """Keep what is in the middle of each square."""
    side, shadow = call.arguments[1], call.first
    for dim in (-2, -1):
        if varies_along(shadow, dim):
            middle = torch.arange(shadow.size(dim) // side) * side + side // 2
            shadow = shadow.index_select(dim, middle)
        else:
            shadow = shadow.narrow(dim, 0, shadow.size(dim) // side)
    return compress(shadow.flatten(2).mT).expand(call.shape)
