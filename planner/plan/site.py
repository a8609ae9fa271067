"""An attention site: one attention of a model, with the layouts of its queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.patterns.layout import TokenLayout

MaskKind = Literal["keys", "both"]
"""``keys``: one mask of keys for all queries. ``both``: for those queries that a mask of queries lets in."""


@dataclass(frozen=True)
class Unreadable:
    """A sequence whose layout is unknown, and why."""

    reason: str

    def __str__(self) -> str:
        return "unknown"


@dataclass(frozen=True)
class AttentionSite:
    """One attention of a model: its shapes, the layouts of its queries and keys, and the flags of the call."""

    name: str
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    dtype: str
    layout: TokenLayout | Unreadable
    key_layout: TokenLayout | Unreadable
    mask: tuple[int, ...] | None = None
    mask_kind: MaskKind | None = None
    is_causal: bool = False
    dropout: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """What must agree for a decision about this site to hold."""
        return (self.batch, self.heads, self.kv_heads, self.queries, self.keys, self.head_dim)

    def why_not(self) -> str | None:
        """Why no pattern can be applied here, None if one can."""
        if self.dropout:
            return "attention dropout is on: call model.eval()"
        if self.queries <= 1 or self.keys <= 1:
            return "one token: there is nothing to leave out"
        if isinstance(self.layout, Unreadable):
            return f"layout unknown: {self.layout.reason}"
        if self.queries != self.keys or self.layout != self.key_layout:
            return f"cross-attention: keys are {self.key_layout}"
        if not self.layout.grids:
            return f"no grid in {self.layout}: text, or a packed input whose grid only layout= can tell"
        if len(self.layout.grids) > 1:
            return f"{len(self.layout.grids)} grids in {self.layout}: one is supported"
        if self.mask is not None and self.mask[-2] != 1 and self.mask_kind is None:
            return f"its mask of shape {self.mask} differs from query to query"
        return None
