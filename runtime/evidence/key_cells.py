"""Key cells: the common refinement of several kinds of groups; each group is a union of cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from planner.patterns.base import Pattern
from planner.patterns.layout import TokenLayout


def group_ids(layout: TokenLayout, pattern: Pattern) -> torch.Tensor:
    """Return the group of each token under a pattern, (tokens,) int64; -1 for global tokens."""
    ids = torch.full((layout.tokens,), -1)
    grid_ids = pattern.grid(layout.grid.sizes).numbers() if pattern.group else torch.zeros(layout.grid.tokens)
    ids[layout.grid_start : layout.grid_start + layout.grid.tokens] = grid_ids.to(ids.dtype)
    return ids


def key_cells(layout: TokenLayout, ids: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide keys into cells; the keys of a cell are in the same group of each kind.

    ids: the group of each token, (tokens,) int64, for each kind of groups.

    Returns the keys of each cell, (cells, size) int64 sequence indices, and which of them are real, (cells, size) bool.
    Cells with fewer keys are padded.
    """
    cell = _split_global_cells(torch.stack(list(ids)).unique(dim=1, return_inverse=True)[1], layout)
    sizes = cell.bincount()
    keys = torch.zeros(len(sizes), int(sizes.max()), dtype=torch.int64)
    is_real = torch.arange(keys.shape[1]) < sizes[:, None]
    keys[is_real] = cell.argsort(stable=True)
    return keys, is_real


def _split_global_cells(cell: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
    """Split cells of global tokens so that none exceeds the grid's largest; (tokens,) int64, the cell of each token."""
    sizes = cell.bincount()
    grid = cell[layout.grid_start : layout.grid_start + layout.grid.tokens]
    limit = int(sizes[grid].max())
    order = cell.argsort(stable=True)
    rank = torch.empty_like(cell)
    rank[order] = torch.arange(len(cell)) - (sizes.cumsum(0) - sizes)[cell[order]]
    return torch.stack([cell, rank // limit]).unique(dim=1, return_inverse=True)[1]
