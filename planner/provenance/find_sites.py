"""Attention sites: each ``scaled_dot_product_attention`` of a graph, with its layout or why it has none."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any

import torch

from planner.capture.call import Call
from planner.capture.trace import Capture, module_path
from planner.errors import LayoutMismatch
from planner.patterns.layout import GlobalTokens, Grid, Segment, TokenLayout
from planner.plan.site import AttentionSite, Unreadable
from planner.provenance.coordinates import segments_of
from planner.provenance.mask_structure import kind_of
from planner.provenance.propagate import Provenance, Source
from planner.provenance.rules.base import SOURCE_STRIDE, compress, contract


def find_sites(capture: Capture, provenance: Provenance, call: Call, layout: str | None = None) -> list[AttentionSite]:
    """Return all attention sites of a captured graph in execution order; raises LayoutMismatch.

    layout: a layout from the caller, for the self-attention sites of that length.
    """
    reader = _Reader(provenance, call)
    nodes = capture.attention_nodes()
    names = _unique([module_path(node) or "attention" for node in nodes])
    sites = [_site(node, name, reader, provenance) for node, name in zip(nodes, names, strict=True)]
    return sites if layout is None else _apply_layout(sites, TokenLayout.parse(layout))


def _site(node: torch.fx.Node, name: str, reader: _Reader, provenance: Provenance) -> AttentionSite:
    signature = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    arguments: dict[str, Any] = {**dict(zip(signature, node.args, strict=False)), **node.kwargs}
    query, key = (arguments[name].meta["val"] for name in ("query", "key"))
    mask = arguments.get("attn_mask")
    rank4 = query.dim() == 4
    q_shape = tuple(query.shape) if rank4 else (1, *query.shape[-3:])
    k_shape = tuple(key.shape) if rank4 else (1, *key.shape[-3:])
    unusual = Unreadable(f"queries have {query.dim()} dimensions instead of 4")
    return AttentionSite(
        name=name,
        batch=q_shape[0],
        heads=q_shape[1],
        kv_heads=k_shape[1],
        queries=q_shape[2],
        keys=k_shape[2],
        head_dim=q_shape[3],
        dtype=str(query.dtype).removeprefix("torch."),
        layout=reader.read(provenance.of(arguments["query"]), query) if rank4 else unusual,
        key_layout=reader.read(provenance.of(arguments["key"]), key) if rank4 else unusual,
        mask=None if mask is None else (1,) * (2 - mask.meta["val"].dim()) + tuple(mask.meta["val"].shape),
        mask_kind=None if mask is None else kind_of(mask),
        is_causal=bool(arguments.get("is_causal", False)),
        dropout=float(arguments.get("dropout_p", 0.0)),
    )


class _Reader:
    """Reads layouts out of shadows, each distinct shadow once."""

    def __init__(self, provenance: Provenance, call: Call) -> None:
        self.sources = provenance.sources
        self.ordered = {provenance.sources[index] for index in provenance.ordered if index >= 0}
        self.call = call
        self.unhandled = provenance.unhandled
        self.guards = provenance.guards
        self.memo = dict[Any, TokenLayout | Unreadable]()

    def read(self, shadow: Any, value: torch.Tensor) -> TokenLayout | Unreadable:
        """Return the layout of the sequence of a (batch, heads, tokens, channels) tensor, or why it has none."""
        if not isinstance(shadow, torch.Tensor):
            return Unreadable(self._why_unknown())
        if not value.shape[2]:
            return Unreadable("it is empty")
        rows = compress(contract(shadow, [3])[:, 0, :, 0])
        key = (rows.data_ptr(), tuple(rows.shape), rows.stride(), value.shape[2])
        if key not in self.memo:
            self.memo[key] = self._rows(rows.expand(rows.shape[0], value.shape[2]))
        return self.memo[key]

    def _rows(self, rows: torch.Tensor) -> TokenLayout | Unreadable:
        """Return the layout of (batch, tokens) ids, or why they have none."""
        if bool((rows < 0).any()):
            return Unreadable(self._why_unknown())
        ids = rows[0]
        source, lengths = torch.unique_consecutive(ids // SOURCE_STRIDE, return_counts=True)
        bounds = [0, *itertools.accumulate(lengths.tolist())]
        segments = list[Segment]()
        for index, (start, stop) in zip(source.tolist(), itertools.pairwise(bounds), strict=True):
            read = self._segments(self.sources[index], ids[start:stop] % SOURCE_STRIDE, start, rows.shape[1])
            if isinstance(read, Unreadable):
                return read
            steps = rows[:, start:stop].diff(dim=1)
            if any(isinstance(segment, Grid) for segment in read) and not bool((steps == steps[:1]).all()):
                return Unreadable("the rows of the batch are laid out differently")
            segments.extend(read)
        return TokenLayout(_with_one_grid(segments)).verify()

    def _segments(self, source: Source, ids: torch.Tensor, start: int, total: int) -> list[Segment] | Unreadable:
        """Return the segments of one source's tokens, which begin at ``start`` of a sequence of ``total``."""
        along_dims = enumerate(torch.unravel_index(ids, source.id_shape) if source.shape else ())
        coordinates = {dim: along for dim, along in along_dims if bool((along != along[0]).any())}
        name, tokens = source.name.replace("-", "_"), len(ids)
        if not coordinates:
            return [GlobalTokens(name, tokens)]
        if list(coordinates) == [0]:
            return self._sequence(source, name, coordinates[0], start, total)
        if len(source.shape) == 2:
            return [Grid((("n", tokens),), name)] if 0 not in coordinates else Unreadable("tokens mix two dimensions")
        axes = raster_axes(coordinates, tokens)
        if axes is None and not tokens % 2 and torch.equal(*ids.chunk(2)):
            return self._twice(source, ids[: tokens // 2], start, total)
        if axes is None:
            return Unreadable(f"the tokens of {source.name} are not in raster order")
        names = _axis_names(source.shape, coordinates)
        return [Grid(tuple((names[dim], extent) for dim, extent in axes), name)]

    def _twice(self, source: Source, ids: torch.Tensor, start: int, total: int) -> list[Segment] | Unreadable:
        """Return the segments of tokens that occur twice, one time behind the other."""
        once = self._segments(source, ids, start, total)
        return once if isinstance(once, Unreadable) else [*once, *once]

    def _sequence(
        self, source: Source, name: str, positions: torch.Tensor, start: int, total: int
    ) -> list[Segment] | Unreadable:
        """Return the segments of a (batch, tokens, …) input, of whose tokens these positions are in the sequence."""
        tokens, steps = len(positions), positions.diff()
        if source in self.ordered and bool((steps == steps[0]).all()) and steps[0] > 0:
            return [Grid((("n", tokens),), name)]
        if tokens != source.shape[0] or bool((steps <= 0).any()) or not self._is_first(source):
            return [GlobalTokens(name, tokens)]
        segments, guards = segments_of(self.call, name, tokens, start, total)
        self.guards.update(guards)
        return segments

    def _is_first(self, source: Source) -> bool:
        """Tell whether a source is the first of the call's inputs of its length: that is taken for the image."""
        same = [other for other in self.sources if other.shape[:1] == source.shape[:1]]
        order = [name for name, _ in self.call.tensors]
        return source.name == min((other.name for other in same), key=order.index)

    def _why_unknown(self) -> str:
        if not self.unhandled:
            return "its tokens do not come from an input"
        (name, _), *_ = Counter(self.unhandled).most_common(1)
        return f"provenance is lost, probably in {name}; pass layout="


def raster_axes(coordinates: dict[int, torch.Tensor], tokens: int) -> list[tuple[int, int]] | None:
    """Return (dimension, extent) of a raster from slow to fast; None if it is no raster.

    coordinates: for each dimension of an input along which its tokens differ, a (tokens,) tensor of where they lie.
    """
    extents = {dim: len(along.unique()) for dim, along in coordinates.items()}
    for dims in itertools.permutations(sorted(coordinates)):
        shape = [extents[dim] for dim in dims]
        if torch.Size(shape).numel() == tokens and all(
            _is_line(coordinates[dim].view(shape), axis) for axis, dim in enumerate(dims)
        ):
            return [(dim, extents[dim]) for dim in dims]
    return None


def _is_line(raster: torch.Tensor, axis: int) -> bool:
    """Tell whether a coordinate changes along one axis only, and always ascends."""
    line = raster[tuple(slice(None) if a == axis else slice(0, 1) for a in range(raster.dim()))]
    return bool((line.diff(dim=axis) > 0).all()) and torch.equal(raster, line.expand(raster.shape))


def _axis_names(shape: Sequence[int], coordinates: Container[int]) -> dict[int, str]:
    """Name the dimensions of an image or video; its channels may stand before, behind or within the grid."""
    fixed = [dim for dim in range(len(shape)) if dim not in coordinates]
    channels = next((dim for dim in fixed if shape[dim] > 1), fixed[0] if fixed else None)
    grid = [dim for dim in range(len(shape)) if dim != channels]
    return {dim: {0: "w", 1: "h"}.get(from_end, "t") for from_end, dim in enumerate(reversed(grid))}


def _with_one_grid(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Keep one of several grids, an image and those it is edited from: the first of the largest; others are global."""
    grids = [index for index, segment in enumerate(segments) if isinstance(segment, Grid)]
    kept = max(grids, key=lambda index: segments[index].tokens, default=None)
    return tuple(
        GlobalTokens(segment.name or "others", segment.tokens) if index in grids and index != kept else segment
        for index, segment in enumerate(segments)
    )


def _apply_layout(sites: Sequence[AttentionSite], layout: TokenLayout) -> list[AttentionSite]:
    applied = [
        replace(site, layout=layout, key_layout=layout)
        if site.queries == site.keys == layout.tokens and site.layout == site.key_layout
        else site
        for site in sites
    ]
    if layout.tokens not in [site.queries for site, new in zip(sites, applied, strict=True) if new is not site]:
        longest = max(sites, key=lambda site: site.queries)
        raise LayoutMismatch(longest.name, str(layout), layout.tokens, longest.queries, str(longest.layout))
    for site, new in zip(sites, applied, strict=True):
        if new is not site and isinstance(site.layout, TokenLayout) and not _refines(layout, site.layout):
            raise LayoutMismatch(site.name, str(layout), layout.tokens, site.queries, str(site.layout))
    return applied


def _refines(layout: TokenLayout, inferred: TokenLayout) -> bool:
    """Tell whether a layout refines an inferred one: every inferred border is one of its borders."""

    def borders(of: TokenLayout) -> set[int]:
        return set(itertools.accumulate(segment.tokens for segment in of.segments))

    return borders(inferred) <= borders(layout)


def _unique(names: Sequence[str]) -> list[str]:
    """Append numbers to names that occur more than once: attn, attn#1, attn#2."""
    counts = Counter[str]()
    unique = list[str]()
    for name in names:
        unique.append(f"{name}#{counts[name]}" if counts[name] else name)
        counts[name] += 1
    return unique
